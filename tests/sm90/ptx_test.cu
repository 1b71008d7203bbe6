// The PTX wrappers of src/sm90/ptx/, one by one, on small integers that every format holds exactly.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <vector>

#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/ptx/wgmma_d192.cuh"
#include "sm90/tile/panel.cuh"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

namespace ptx = foveal::sm90::ptx;
using foveal::DType;
using foveal::sm90::descriptor;
using foveal::sm90::descriptor_low;

constexpr int kRows = 64, kPanel = 64;

void synchronize() { require_cuda(cudaDeviceSynchronize(), "kernel"); }

template <class T>
std::vector<T> downloaded(const DeviceBuffer& buffer) {
    std::vector<T> values(buffer.bytes() / sizeof(T));
    buffer.download(values.data());
    return values;
}

// 16-bit patterns of small integers.
uint16_t bits_of(DType type, int value) {
    const auto x = static_cast<float>(value);
    if (type == DType::f16) {
        const __half h = __float2half(x);
        return reinterpret_cast<const uint16_t&>(h);
    }
    const __nv_bfloat16 b = __float2bfloat16(x);
    return reinterpret_cast<const uint16_t&>(b);
}

int small(int row, int column, int salt) { return (row * 7 + column * 3 + salt) % 5 - 2; }

std::vector<uint16_t> matrix(DType type, int rows, int columns, int salt) {
    std::vector<uint16_t> m;
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) m.push_back(bits_of(type, small(r, c, salt)));
    return m;
}

// [rows, columns] row-major as the copy engine sees it: (column, row, 1, 1).
CUtensorMap map_of(const DeviceBuffer& buffer, int rows, int columns, int box_rows, CUtensorMapSwizzle swizzle) {
    void* encode = nullptr;
    cudaDriverEntryPointQueryResult found{};
    require_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, cudaEnableDefault, &found),
                 "entry point");
    const cuuint64_t shape[4] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows), 1, 1};
    const cuuint64_t row_bytes = static_cast<cuuint64_t>(columns) * 2;
    const cuuint64_t strides[3] = {row_bytes, row_bytes, row_bytes};
    const cuuint32_t box[4] = {kPanel, static_cast<cuuint32_t>(box_rows), 1, 1}, ones[4] = {1, 1, 1, 1};
    CUtensorMap map;
    const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
        &map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, buffer.as<>(), shape, strides, box, ones,
        CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) throw CudaFailure("cuTensorMapEncodeTiled");
    return map;
}

__global__ void warp_instructions(int* lanes, float* powers, int* elected, uint32_t* matrices, uint32_t* copied) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    __shared__ alignas(16) uint16_t tile[32][8];  // four 8x8 matrices, one below the other
    lanes[lane] = ptx::lane_id();
    powers[lane] = ptx::ex2(lane == 31 ? -INFINITY : static_cast<float>(lane - 10));
    elected[lane] = ptx::elect_sync();
    const auto value = [&](uint32_t i) {
        return (static_cast<uint32_t>(lane) << 8 | i << 1) | ((static_cast<uint32_t>(lane) << 8 | i << 1 | 1) << 16);
    };
    ptx::stmatrix_x4(ptx::shared_address(tile[lane]), value(0), value(1), value(2), value(3));
    __syncwarp();
    for (uint32_t i = 0; i < 4; ++i) matrices[4 * lane + i] = reinterpret_cast<const uint32_t*>(tile[lane])[i];
    // Back by way of global memory, without the third matrix.
    __threadfence();
    __syncwarp();
    ptx::copy_async(ptx::shared_address(tile[lane]), matrices + 4 * lane, lane / 8 != 2);
    ptx::wait_for_copies();
    __syncwarp();
    uint32_t loaded[4];
    ptx::ldmatrix_x4(ptx::shared_address(tile[lane]), loaded);
    for (uint32_t i = 0; i < 4; ++i) copied[4 * lane + i] = i == 2 ? loaded[i] : loaded[i] ^ value(i);
}

TEST_F(Gpu, PtxWarpInstructions) {
    const DeviceBuffer lanes(32 * 4), powers(32 * 4), elected(32 * 4), matrices(128 * 4), copied(128 * 4);
    warp_instructions<<<1, 32>>>(lanes.as<int>(), powers.as<float>(), elected.as<int>(), matrices.as<uint32_t>(),
                                 copied.as<uint32_t>());
    synchronize();
    const auto lane = downloaded<int>(lanes);
    for (int i = 0; i < 32; ++i) EXPECT_EQ(lane[static_cast<size_t>(i)], i);
    const auto power = downloaded<float>(powers);
    for (int i = 0; i < 31; ++i) EXPECT_FLOAT_EQ(power[static_cast<size_t>(i)], std::ldexp(1.0f, i - 10));
    EXPECT_EQ(power[31], 0.0f);
    int chosen = 0;
    for (const int e : downloaded<int>(elected)) chosen += e;
    EXPECT_EQ(chosen, 1);
    // Matrix m, row r, columns 2q and 2q + 1 come from register m of lane 4r + q.
    const auto stored = downloaded<uint32_t>(matrices);
    for (uint32_t m = 0; m < 4; ++m)
        for (uint32_t r = 0; r < 8; ++r)
            for (uint32_t q = 0; q < 4; ++q) {
                const uint32_t low = (4 * r + q) << 8 | m << 1;
                EXPECT_EQ(stored[(8 * m + r) * 4 + q], low | (low | 1) << 16) << m << ' ' << r << ' ' << q;
            }
    EXPECT_EQ(downloaded<uint32_t>(copied), std::vector<uint32_t>(128, 0));  // nothing is left over
}

// One thread loads a box and stores it again; the other warp's thread waits at a named barrier for it.
__global__ void round_trip(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, int row,
                           int* waited) {
    __shared__ alignas(1024) uint16_t box[16 * kPanel];
    __shared__ uint64_t barrier;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 2);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        if (threadIdx.x == 0) {
            ptx::mbarrier_arrive_expect_tx(barrier, sizeof box);
            ptx::mbarrier_arrive(barrier);
            ptx::tensor_load(box, from, barrier, 0, row, 0, 0);
        }
        __syncwarp();
        ptx::mbarrier_wait(barrier, 0);
        ptx::fence_proxy_async();
        __syncwarp();
        if (threadIdx.x == 0) {
            ptx::tensor_store(box, to, 0, row, 0, 0);
            ptx::bulk_commit_group();
            ptx::bulk_wait_group_read();
            *reinterpret_cast<volatile int*>(box) = 1;
        }
        __syncwarp();
        ptx::barrier_arrive(1, 64);
    } else {
        ptx::barrier_sync(1, 64);
        if (threadIdx.x == 32) *waited = *reinterpret_cast<volatile int*>(box);
    }
}

TEST_F(Gpu, PtxTensorCopyCutsAtTheTensorsEnd) {
    constexpr int kTensorRows = 20, kBoxRow = 16;
    const auto values = matrix(DType::bf16, kTensorRows, kPanel, 1);
    const DeviceBuffer from(values), to(std::vector<uint16_t>(values.size() + 12 * kPanel, 0x7777)), waited(4);
    round_trip<<<1, 64>>>(map_of(from, kTensorRows, kPanel, 16, CU_TENSOR_MAP_SWIZZLE_NONE),
                          map_of(to, kTensorRows + 6, kPanel, 16, CU_TENSOR_MAP_SWIZZLE_NONE), kBoxRow,
                          waited.as<int>());
    synchronize();
    const auto copied = downloaded<uint16_t>(to);
    for (int r = 0; r < kTensorRows + 12; ++r)
        for (int c = 0; c < kPanel; ++c) {
            const bool in_box = r >= kBoxRow && r < kTensorRows + 6;  // the store is cut there
            const auto at = static_cast<size_t>(r * kPanel + c);
            const uint16_t expected = !in_box           ? 0x7777
                                      : r < kTensorRows ? values[at]
                                                        : 0;  // the load is filled with zeros
            ASSERT_EQ(copied[at], expected) << r << ' ' << c;
        }
    EXPECT_EQ(downloaded<int>(waited)[0], 1);
}

// D[64, kColumns] = A * B with k = 64: `ss` from shared memory (B is [kColumns, 64]), else A from registers (B is [64,
// kColumns]).
template <DType kType, int kColumns, bool kFromShared>
__global__ void __launch_bounds__(128)
    multiply(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map, const uint16_t* a,
             float* d) {
    constexpr int kPanels = kFromShared ? 1 : (kColumns + kPanel - 1) / kPanel, kRowsB = kFromShared ? kColumns : 64;
    __shared__ alignas(1024) uint16_t a_tile[kRows * kPanel], b_tile[kPanels][kRowsB * kPanel];
    __shared__ uint64_t loaded;
    const int lane = static_cast<int>(threadIdx.x) % 32, row = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(loaded, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(loaded, sizeof a_tile + sizeof b_tile);
        ptx::tensor_load(a_tile, a_map, loaded, 0, 0, 0, 0);
        for (int p = 0; p < kPanels; ++p) ptx::tensor_load(b_tile[p], b_map, loaded, p * kPanel, 0, 0, 0);
    }
    __syncthreads();
    ptx::mbarrier_wait(loaded, 0);
    float sums[kColumns / 2];
    for (float& s : sums) s = 1e30f;  // `accumulate` false must not read them
    uint32_t fragment[4][4];
    const uint32_t a_low = descriptor_low(a_tile, 0), b_low = descriptor_low(b_tile, kRowsB * 128);
    for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 4; ++i) {
            const int r = row + 8 * (i & 1), c = 16 * k + 2 * (lane % 4) + 8 * (i >> 1);
            fragment[k][i] = a[r * kPanel + c] | static_cast<uint32_t>(a[r * kPanel + c + 1]) << 16;
        }
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 4; ++k) {
        if constexpr (kFromShared)
            ptx::wgmma_ss<kType>(sums, descriptor(a_low + 2 * k), descriptor(b_low + 2 * k), k != 0);
        else
            ptx::wgmma_rs_mn<kType>(sums, fragment[k], descriptor(b_low + k * 16 * 128 / 16), k != 0);
    }
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
    ptx::pin(sums);
    for (int i = 0; i < kColumns / 2; ++i)
        d[(row + 8 * (i >> 1 & 1)) * kColumns + i / 4 * 8 + 2 * (lane % 4) + (i & 1)] = sums[i];
}

template <DType kType, int kColumns, bool kFromShared>
void check_multiply() {
    const int b_rows = kFromShared ? kColumns : 64, b_columns = kFromShared ? 64 : kColumns;
    const DeviceBuffer a(matrix(kType, kRows, 64, 1)), b(matrix(kType, b_rows, b_columns, 4)), d(kRows * kColumns * 4);
    multiply<kType, kColumns, kFromShared><<<1, 128>>>(map_of(a, kRows, 64, kRows, CU_TENSOR_MAP_SWIZZLE_128B),
                                                       map_of(b, b_rows, b_columns, b_rows, CU_TENSOR_MAP_SWIZZLE_128B),
                                                       a.as<uint16_t>(), d.as<float>());
    synchronize();
    const auto product = downloaded<float>(d);
    for (int r = 0; r < kRows; ++r)
        for (int c = 0; c < kColumns; ++c) {
            int expected = 0;
            for (int k = 0; k < 64; ++k) expected += small(r, k, 1) * (kFromShared ? small(c, k, 4) : small(k, c, 4));
            ASSERT_EQ(product[static_cast<size_t>(r * kColumns + c)], static_cast<float>(expected)) << r << ' ' << c;
        }
}

template <DType kType>
void check_multiplies() {
    check_multiply<kType, 32, true>();
    check_multiply<kType, 64, true>();
    check_multiply<kType, 128, true>();
    check_multiply<kType, 64, false>();
    check_multiply<kType, 72, false>();
    check_multiply<kType, 128, false>();
    check_multiply<kType, 192, false>();
    check_multiply<kType, 256, false>();
}

TEST_F(Gpu, PtxWgmma) {
    check_multiplies<DType::bf16>();
    check_multiplies<DType::f16>();
}

// Both warps of a pair get the same answer; another pair has a barrier of its own.
__global__ void agree(int odd_one_out, int* answers) {
    const int thread = static_cast<int>(threadIdx.x);
    answers[thread] = ptx::barrier_red_and(1 + thread / 64, 64, thread != odd_one_out) ? 1 : 0;
}

TEST_F(Gpu, PtxBarrierRedAnd) {
    for (const int odd_one_out : {-1, 0, 63, 64, 100}) {
        const DeviceBuffer answers(128 * 4);
        agree<<<1, 128>>>(odd_one_out, answers.as<int>());
        synchronize();
        const auto answer = downloaded<int>(answers);
        for (int i = 0; i < 128; ++i)
            EXPECT_EQ(answer[static_cast<size_t>(i)], odd_one_out < 0 || i / 64 != odd_one_out / 64) << i;
    }
}

// 168 registers a thread at launch; two warpgroups get what the first gives up.
__global__ void __launch_bounds__(384, 1) trade_registers(int* done) {
    if (threadIdx.x / 128 == 0)
        ptx::setmaxnreg_dec<40>();
    else
        ptx::setmaxnreg_inc<232>();
    if (threadIdx.x % 128 == 0) done[threadIdx.x / 128] = 1;
}

TEST_F(Gpu, PtxSetmaxnreg) {
    const DeviceBuffer done(std::vector<int>{0, 0, 0});
    trade_registers<<<1, 384>>>(done.as<int>());
    synchronize();
    EXPECT_EQ(downloaded<int>(done), (std::vector<int>{1, 1, 1}));
}

}  // namespace
}  // namespace foveal_testing
