#include <cuda_runtime_api.h>

#include "cuda/device.hpp"
#include "cuda/driver.hpp"
#include "parallel/streams.hpp"

namespace foveal::parallel {

StreamEvents::~StreamEvents() {
    if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

// A wait keeps what was recorded last when it was enqueued: one event serves for all orders, one after the other.
void StreamEvents::order(void* earlier, void* later) {
    if (earlier == later) return;
    const int32_t device = cuda::device_of(earlier);
    const cuda::CurrentDevice current(device);
    if (event_ == nullptr || device != device_) {
        cudaEvent_t made = nullptr;
        cuda::check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreateWithFlags");
        if (event_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
        event_ = made;
        device_ = device;
    }
    const auto event = static_cast<cudaEvent_t>(event_);
    cuda::check(cudaEventRecord(event, static_cast<cudaStream_t>(earlier)), "cudaEventRecord");
    cuda::check(cudaStreamWaitEvent(static_cast<cudaStream_t>(later), event, 0), "cudaStreamWaitEvent");
}

bool has_ended(void* stream) {
    const cuda::CurrentDevice current(cuda::device_of(stream));
    const cudaError_t status = cudaStreamQuery(static_cast<cudaStream_t>(stream));
    if (status == cudaErrorNotReady) {
        cudaGetLastError();
        return false;
    }
    cuda::check(status, "the work on the stream");
    return true;
}

}  // namespace foveal::parallel
