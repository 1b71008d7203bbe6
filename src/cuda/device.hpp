// CUDA's errors as ours, and the current device. Host code of the sm90 backend only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace foveal::sm90 {

// Throws Error(CUDA_ERROR) unless all went well.
void check(cudaError_t status, const char* what);

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

}  // namespace foveal::sm90
