#include "cuda/device.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <array>
#include <mutex>
#include <string>

#include "cuda/driver.hpp"
#include "foveal/types.hpp"

namespace foveal::cuda {
namespace {

int32_t attribute(cudaDeviceAttr name, int32_t device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
    return value;
}

std::string name_of(int32_t ordinal) {
    CUdevice device = 0;
    char name[256] = "";
    check(driver().device_of_ordinal(&device, ordinal), "cuDeviceGet");
    check(driver().device_name(name, sizeof name, device), "cuDeviceGetName");
    return name;
}

DeviceTraits ask_traits(int32_t device) {
    DeviceTraits traits;
    traits.compute_major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    traits.compute_minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    traits.sms = attribute(cudaDevAttrMultiProcessorCount, device);
    traits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
    traits.card = find_card(name_of(device));
    // Two transfers a clock, of the bus' width in bits; the clock is in kHz. Where a virtual GPU hides them, an H200's.
    const double dram_bytes_per_second =
        2e3 * attribute(cudaDevAttrMemoryClockRate, device) * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
    if (dram_bytes_per_second > 0) traits.dram_bytes_per_second = dram_bytes_per_second;
    return traits;
}

struct KnownDevice {
    std::once_flag once;
    DeviceTraits traits;
};

}  // namespace

bool is_device_pointer(const void* pointer) {
    cudaPointerAttributes attributes{};
    if (pointer == nullptr) return false;
    if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

int32_t device_of(void* stream) {
    int device = 0;
    const cudaError_t status = cudaGetDevice(&device);
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
        status == cudaErrorInitializationError) {
        cudaGetLastError();
        throw Error(FOVEAL_NO_DEVICE, std::string("the sm90 backend finds no GPU: ") + cudaGetErrorString(status));
    }
    check(status, "cudaGetDevice");
    if (stream == nullptr) return device;
    // Through its context: cudaStreamGetDevice would break a capture.
    CUcontext of_stream = nullptr, current = nullptr;
    check(driver().stream_context(static_cast<CUstream>(stream), &of_stream), "the context of the stream");
    check(driver().current_context(&current), "the current context");
    if (of_stream == current) return device;
    check(driver().push_context(of_stream), "cuCtxPushCurrent");
    const CUresult result = driver().current_device(&device);
    driver().pop_context(&current);
    check(result, "the device of the stream");
    return device;
}

const DeviceTraits& traits_of(int32_t device) {
    static std::array<KnownDevice, kMaxDevices> devices;
    if (device < 0 || device >= kMaxDevices)
        throw Error(FOVEAL_NO_DEVICE,
                    "device " + std::to_string(device) + " is not one of 0 to " + std::to_string(kMaxDevices - 1));
    KnownDevice& known = devices[static_cast<size_t>(device)];
    std::call_once(known.once, [&] { known.traits = ask_traits(device); });
    return known.traits;
}

CurrentDevice::CurrentDevice(int32_t device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == device) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
}

CurrentDevice::~CurrentDevice() {
    if (changed_) cudaSetDevice(previous_);
}

}  // namespace foveal::cuda
