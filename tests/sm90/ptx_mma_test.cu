// The PTX wrappers of src/sm90/ptx/ that the decode kernel takes, one by one (the others: ptx_test.cu).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <vector>

#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/global_memory.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/mma.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

namespace ptx = foveal::sm90::ptx;
using foveal::DType;

void synchronize() { require_cuda(cudaDeviceSynchronize(), "kernel"); }

template <class T>
std::vector<T> downloaded(const DeviceBuffer& buffer) {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    buffer.download(values.data());
    return values;
}

__host__ __device__ int small(int row, int column, int salt) { return (row * 7 + column * 3 + salt) % 5 - 2; }

template <DType kType>
__device__ uint32_t pair_of(int low, int high) {
    const auto bits = [](int value) -> uint32_t {
        const auto x = static_cast<float>(value);
        return kType == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16(x)) : __half_as_ushort(__float2half(x));
    };
    return bits(low) | bits(high) << 16;
}

// d[16][8] = 3 + a[16][16] b[16][8], of small integers.
template <DType kType>
__global__ void multiply(float* d) {
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
    const auto a_at = [](int row, int column) {
        return pair_of<kType>(small(row, column, 1), small(row, column + 1, 1));
    };
    const auto b_at = [g](int row) { return pair_of<kType>(small(row, g, 4), small(row + 1, g, 4)); };
    const uint32_t a[4] = {a_at(g, 2 * t), a_at(g + 8, 2 * t), a_at(g, 2 * t + 8), a_at(g + 8, 2 * t + 8)};
    const uint32_t b[2] = {b_at(2 * t), b_at(2 * t + 8)};
    float sums[4] = {3, 3, 3, 3};
    ptx::mma_m16n8k16<kType>(sums, a, b);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

template <DType kType>
void check_multiply() {
    const DeviceBuffer d(16 * 8 * 4);
    multiply<kType><<<1, 32>>>(d.as<float>());
    synchronize();
    const auto product = downloaded<float>(d);
    for (int r = 0; r < 16; ++r)
        for (int c = 0; c < 8; ++c) {
            int expected = 3;
            for (int k = 0; k < 16; ++k) expected += small(r, k, 1) * small(k, c, 4);
            EXPECT_EQ(product[static_cast<size_t>(r * 8 + c)], static_cast<float>(expected)) << r << ' ' << c;
        }
}

TEST_F(Gpu, PtxMma) {
    check_multiply<DType::bf16>();
    check_multiply<DType::f16>();
}

// Four 8x8 matrices, element (r, c) of the m-th being 64 m + 8 r + c: read transposed, and one of them transposed once
// more in registers.
__global__ void transpose(uint32_t* loaded, uint32_t* back) {
    __shared__ alignas(16) uint16_t matrices[4][8][8];
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 256; i += 32) matrices[i / 64][i / 8 % 8][i % 8] = static_cast<uint16_t>(i);
    __syncwarp();
    uint32_t registers[4];
    ptx::ldmatrix_x4_trans(ptx::shared_address(matrices[lane / 8][lane % 8]), registers);
    for (int m = 0; m < 4; ++m) loaded[m * 32 + lane] = registers[m];
    back[lane] = ptx::movmatrix_trans(registers[2]);
}

TEST_F(Gpu, PtxTransposes) {
    const DeviceBuffer loaded(128 * 4), back(32 * 4);
    transpose<<<1, 32>>>(loaded.as<uint32_t>(), back.as<uint32_t>());
    synchronize();
    const auto got = downloaded<uint32_t>(loaded), twice = downloaded<uint32_t>(back);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const uint32_t r = lane / 4, c = lane % 4 * 2;
        for (uint32_t m = 0; m < 4; ++m)
            EXPECT_EQ(got[m * 32 + lane], (64 * m + 8 * c + r) | (64 * m + 8 * (c + 1) + r) << 16) << m << ' ' << lane;
        EXPECT_EQ(twice[lane], (128 + 8 * r + c) | (128 + 8 * r + c + 1) << 16) << lane;
    }
}

// Each of 32 threads copies a vector, and arrives when it is there.
__global__ void copy(const uint4* from, uint4* to) {
    __shared__ uint4 vectors[32];
    __shared__ uint64_t there;
    if (threadIdx.x == 0) ptx::mbarrier_init(there, 32);
    __syncthreads();
    ptx::copy_async(ptx::shared_address(&vectors[threadIdx.x]), from + threadIdx.x, threadIdx.x != 5);
    ptx::arrive_when_copied(there);
    ptx::mbarrier_wait(there, 0);
    to[threadIdx.x] = vectors[31 - threadIdx.x];
}

TEST_F(Gpu, PtxArriveWhenCopied) {
    std::vector<uint32_t> values(128);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint32_t>(i + 1);
    const DeviceBuffer from(values), to(128 * 4);
    copy<<<1, 32>>>(from.as<uint4>(), to.as<uint4>());
    synchronize();
    const auto got = downloaded<uint32_t>(to);
    for (size_t i = 0; i < 128; ++i) {
        const size_t source = (31 - i / 4) * 4 + i % 4;
        EXPECT_EQ(got[i], source / 4 == 5 ? 0 : values[source]) << i;
    }
}

// Every CTA writes a line, counts itself, and the last one adds all lines up.
__global__ void meet(float* lines, int* count, float* sum) {
    const int cta = static_cast<int>(blockIdx.x);
    const float four[4] = {1, 2, 3, static_cast<float>(cta)}, two[2] = {4, 5};
    ptx::store_relaxed(lines + 8 * cta, four);
    ptx::store_relaxed(lines + 8 * cta + 4, two);
    if (ptx::atomic_add_acq_rel(count, 2) != 2 * (static_cast<int>(gridDim.x) - 1)) return;
    for (int i = 0; i < static_cast<int>(gridDim.x); ++i) {
        float x[4] = {-1, -1, -1, -1}, y[2] = {-1, -1}, kept[2] = {10, 20};
        ptx::load_relaxed_if(x, lines + 8 * i, true);
        ptx::load_relaxed_if(y, lines + 8 * i + 4, true);
        ptx::load_relaxed_if(kept, nullptr, false);
        *sum += x[0] + x[1] + x[2] + x[3] + y[0] + y[1] + kept[0] + kept[1];
    }
}

TEST_F(Gpu, PtxGlobalMemory) {
    constexpr int kCtas = 500;
    const DeviceBuffer lines(std::vector<float>(8 * kCtas, -1)), count(std::vector<int>{0}), sum(std::vector<float>{0});
    meet<<<kCtas, 1>>>(lines.as<float>(), count.as<int>(), sum.as<float>());
    synchronize();
    EXPECT_EQ(downloaded<int>(count)[0], 2 * kCtas);
    EXPECT_EQ(downloaded<float>(sum)[0], kCtas * 45 + kCtas * (kCtas - 1) / 2);
}

}  // namespace
}  // namespace foveal_testing
