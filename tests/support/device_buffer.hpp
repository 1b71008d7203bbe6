// Device memory that frees itself, and CUDA errors as exceptions. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/case_data.hpp"

namespace foveal_testing {

class CudaFailure : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

inline void require_cuda(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();  // not sticky: the next call shall not see it
        throw OutOfMemory(message);
    }
    throw CudaFailure(message);
}

class DeviceBuffer {
   public:
    DeviceBuffer() = default;
    explicit DeviceBuffer(size_t bytes) : bytes_(bytes) {
        if (bytes > 0) require_cuda(cudaMalloc(&data_, bytes), "cudaMalloc");
    }
    template <class T>
    explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size() * sizeof(T)) {
        upload(values.data());
    }
    DeviceBuffer(DeviceBuffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~DeviceBuffer() { (void)cudaFree(data_); }

    size_t bytes() const { return bytes_; }
    template <class T = void>
    T* as() const {
        return static_cast<T*>(data_);
    }

    void upload(const void* from) {
        if (bytes_ > 0) require_cuda(cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice), "copy to the device");
    }
    void download(void* to) const {
        if (bytes_ > 0) require_cuda(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost), "copy to the host");
    }

   private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace foveal_testing
