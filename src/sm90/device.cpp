#include "sm90/device.hpp"

#include <string>

#include "cuda/device.hpp"

namespace foveal::sm90 {

bool holds(const void* pointer) { return cuda::is_device_pointer(pointer); }

int32_t device_of(void* stream) { return cuda::device_of(stream); }

cuda::DeviceTraits traits_of(int32_t device) {
    if (device < 0) return {};
    const cuda::DeviceTraits& traits = cuda::traits_of(device);
    if (traits.compute_major != 9 || traits.compute_minor != 0)
        throw Error(FOVEAL_NO_DEVICE, "device " + std::to_string(device) + " has compute capability " +
                                          std::to_string(traits.compute_major) + "." +
                                          std::to_string(traits.compute_minor) + "; the sm90 backend needs 9.0");
    return traits;
}

}  // namespace foveal::sm90
