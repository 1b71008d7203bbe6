// In place of device.cpp and of the launches, in a build without CUDA.
#include "sm90/device.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse() {
    throw Error(FOVEAL_NO_DEVICE, "backend is sm90, but this build of foveal has no CUDA part");
}

}  // namespace

bool holds(const void*) { return false; }

int32_t device_of(void*) { refuse(); }

cuda::DeviceTraits traits_of(int32_t device) {
    if (device < 0) return {};
    refuse();
}

void launch_forward(const ForwardProblem&, const PreparedForward&, int32_t, const ForwardPointers&, void*) { refuse(); }

void launch_e4m3_forward(const ForwardProblem&, const PreparedE4m3&, int32_t, const ForwardPointers&, void*) {
    refuse();
}

void launch_decode(const ForwardProblem&, const PreparedDecode&, int32_t, const ForwardPointers&, void*) { refuse(); }

void launch_backward(const BackwardProblem&, const PreparedBackward&, int32_t, const BackwardPointers&, void*) {
    refuse();
}

void launch_append(const Append&, void*) { refuse(); }

void launch_cache_copy(const CacheCopy&, void*) { refuse(); }

void launch_merge(const Merge&, void*) { refuse(); }

}  // namespace foveal::sm90
