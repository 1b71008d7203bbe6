#include "cuda/device.hpp"

#include <string>

#include "problem/forward.hpp"

namespace foveal::sm90 {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error of ours is not left for the caller's next call
    throw Error(FOVEAL_CUDA_ERROR, std::string(what) + ": " + cudaGetErrorString(status));
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

}  // namespace foveal::sm90
