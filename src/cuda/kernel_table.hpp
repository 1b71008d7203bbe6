// The kernels of an operation, and how one is launched.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cuda/device.hpp"

namespace foveal::cuda {

struct Kernel {
    const void* (*symbol)() = nullptr;  // of the __global__ function, as the runtime takes it; null: there is none
    int32_t shared_bytes = 0;           // dynamic, of a CTA
};

// The driver's handle of a kernel on a device, which must be the current one. The driver launches these 0.2 to 0.4 us
// faster than the runtime launches their symbols (H200, 2026-11-24).
CUfunction load(const Kernel& kernel);

// A kernel is loaded for a device when it is first asked for there. Threads that ask at once load the same handle.
template <size_t kCount>
class KernelTable {
   public:
    explicit constexpr KernelTable(const std::array<Kernel, kCount>& kernels) : kernels_(kernels) {}

    // device: the current one.
    CUfunction function(int32_t device, size_t index) {
        std::atomic<CUfunction>& slot = functions_[static_cast<size_t>(device)][index];
        CUfunction function = slot.load(std::memory_order_acquire);
        if (function == nullptr) slot.store(function = load(kernels_[index]), std::memory_order_release);
        return function;
    }

   private:
    const std::array<Kernel, kCount> kernels_;
    std::array<std::array<std::atomic<CUfunction>, kCount>, kMaxDevices> functions_{};
};

struct LaunchShape {
    int32_t grid;     // CTAs
    int32_t threads;  // a CTA
    int32_t shared_bytes = 0;
    // The kernel may set itself up while the one before it in the stream ends; it then waits for that end itself.
    bool overlaps_kernel_before = false;
};

// arguments: addresses of the kernel's. name: for messages.
void launch(CUfunction function, const LaunchShape& shape, void* stream, void** arguments, const char* name);

}  // namespace foveal::cuda
