// A tensor's memory where a backend wants it: on the host or on the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "foveal/foveal.h"

#if FOVEAL_HAS_CUDA
#include "tests/support/device_buffer.hpp"
#endif

namespace foveal_tool {

class TensorMemory {
   public:
    TensorMemory(TensorMemory&&) noexcept = default;
    TensorMemory& operator=(TensorMemory&&) noexcept = default;

    // Zeros.
    TensorMemory(foveal_backend backend, size_t bytes) {
#if FOVEAL_HAS_CUDA
        if (backend == FOVEAL_BACKEND_SM90) {
            device_ = foveal_testing::DeviceBuffer(bytes);
            data_ = device_.as();
            if (bytes > 0) foveal_testing::require_cuda(cudaMemset(data_, 0, bytes), "cudaMemset");
            return;
        }
#endif
        (void)backend;
        host_.resize(bytes);
        data_ = host_.data();
    }

    // Uses the file's bytes where they lie if the backend can.
    TensorMemory(foveal_backend backend, std::span<const std::byte> bytes, size_t alignment)
        : TensorMemory(backend, in_place(backend, bytes, alignment) ? 0 : bytes.size()) {
        if (in_place(backend, bytes, alignment)) {
            data_ = const_cast<std::byte*>(bytes.data());  // an input: foveal does not write it
            return;
        }
        fill(bytes);
    }

    void* data() const { return data_; }

    // Not for what is used where the file has it.
    void fill(std::span<const std::byte> bytes) {
#if FOVEAL_HAS_CUDA
        if (device_.bytes() > 0) {
            device_.upload(bytes.data());
            return;
        }
#endif
        if (!bytes.empty()) std::memcpy(host_.data(), bytes.data(), bytes.size());
    }

    // The bytes on the host, after the device has finished.
    std::span<const std::byte> fetch() {
#if FOVEAL_HAS_CUDA
        if (device_.bytes() > 0) {
            host_.resize(device_.bytes());
            device_.download(host_.data());
        }
#endif
        return host_;
    }

   private:
    static bool in_place(foveal_backend backend, std::span<const std::byte> bytes, size_t alignment) {
        return backend == FOVEAL_BACKEND_CPU && reinterpret_cast<uintptr_t>(bytes.data()) % alignment == 0;
    }

    std::vector<std::byte> host_;
#if FOVEAL_HAS_CUDA
    foveal_testing::DeviceBuffer device_;
#endif
    void* data_ = nullptr;
};

}  // namespace foveal_tool
