#include <cstdint>

#include "device_buffer.hpp"
#include "gpu_spin.hpp"

namespace foveal_testing {
namespace {

__global__ void spin_kernel(int64_t cycles) {
    const int64_t begin = clock64();
    while (clock64() - begin < cycles) {
    }
}

}  // namespace

void spin(int milliseconds, cudaStream_t stream) {
    constexpr int64_t kMaxCyclesAMillisecond = 2'000'000;  // 1980 MHz at most: at a lower clock it spins longer
    spin_kernel<<<1, 1, 0, stream>>>(milliseconds * kMaxCyclesAMillisecond);
    require_cuda(cudaGetLastError(), "spin");
}

}  // namespace foveal_testing
