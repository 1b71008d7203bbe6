// Devices: which one a stream or a pointer belongs to, and what it is.
#pragma once

#include <cstdint>

#include "cuda/traits.hpp"

namespace foveal::cuda {

inline constexpr int32_t kMaxDevices = 64;

// Is this host pointer device memory? false where there is no driver.
bool is_device_pointer(const void* pointer);

// The device that a stream belongs to; null: the current one. Throws Error(NO_DEVICE) where there is none.
int32_t device_of(void* stream);

// Asked of the driver once. Throws Error(NO_DEVICE) unless there is such a device.
const DeviceTraits& traits_of(int32_t device);

// The current device for as long as this lives; the caller's comes back.
class CurrentDevice {
   public:
    explicit CurrentDevice(int32_t device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

   private:
    int previous_ = 0;
    bool changed_ = false;
};

}  // namespace foveal::cuda
