#include <cstdint>

#include "tests/support/device_buffer.hpp"
#include "tests/support/gpu_spin.hpp"

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

namespace {
struct Arguments {
    char bytes[4 * 128 + 160];  // four tensor maps and a few numbers, as the library's kernels take them
};
__global__ void nothing(const __grid_constant__ Arguments) {}
}  // namespace

void launch_nothing(cudaStream_t stream) { nothing<<<1, 384, 0, stream>>>(Arguments{}); }

}  // namespace foveal_testing
