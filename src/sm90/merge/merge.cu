// merged = the parts put together (contract 1.5). Bound by memory: each element of the parts is read once.
//
// A CTA takes tiles of 64 rows, numbered (batch, row, head) so that neighbours are neighbours in memory:
//   1. Four threads a row read its log-sum-exps, write the merged one and leave the parts' weights in shared memory.
//      No other thread reads the row's log-sum-exps, so the merged one may replace one of them.
//   2. All threads sum the rows' elements, 16 bytes of each part at a time where alignment permits. An element is read
//      and written by one thread, so the merged row may replace one of the parts.
#include <cmath>

#include "sm90/merge/params.hpp"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {
namespace {

constexpr int32_t kRowWeighers = kMergeThreads / kMergeTileRows;  // threads that share a row's parts in step 1
constexpr int32_t kLoadsAtOnce = 2;                               // of each thread in step 2
constexpr float kCountsNothing = -1;  // in place of the weight of a part whose log-sum-exp is -inf

// What a kernel is compiled for. A type: nvcc 13.0 rejects kernels with a structure as template argument.
template <DType kInType, DType kOutType, bool kIsPacked>
struct Config {
    static constexpr DType kIn = kInType;
    static constexpr DType kOut = kOutType;
    static constexpr bool kPacked = kIsPacked;  // all rows can be read and written 16 bytes at a time
};

struct Place {
    int64_t batch, row, head;
};

struct Tile {
    Place place[kMergeTileRows];
    float weight[FOVEAL_MAX_MERGE_PARTS][kMergeTileRows];
};

// Elements that one load brings.
template <class Config>
constexpr int32_t kPack = Config::kPacked ? kMergePackBytes / Format<Config::kIn>::kBytes : 1;

template <class Type, int32_t kSize>
struct alignas(sizeof(Type) * kSize < kMergePackBytes ? sizeof(Type) * kSize : kMergePackBytes) Pack {
    Type element[kSize];
};

__device__ float max_of_row(float x) {
    for (int32_t lane = 1; lane < kRowWeighers; lane *= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFF, x, lane));
    return x;
}

__device__ float sum_of_row(float x) {
    for (int32_t lane = 1; lane < kRowWeighers; lane *= 2) x += __shfl_xor_sync(0xFFFFFFFF, x, lane);
    return x;
}

// Step 1, for rows from first_row on.
__device__ void weigh(const MergeParams& params, int64_t first_row, Tile& tile) {
    const int32_t r = static_cast<int32_t>(threadIdx.x) / kRowWeighers;
    const int32_t first_part = static_cast<int32_t>(threadIdx.x) % kRowWeighers;
    const int64_t i = first_row + r;
    const int32_t parts = i < params.all_rows ? params.parts : 0;  // a row past the end takes part in the shuffles
    const Place at{i / params.heads / params.rows, i / params.heads % params.rows, i % params.heads};
    const auto lse_of = [&at](const MergeRows& rows) {
        return rows.lse + at.batch * rows.lse_batch_stride + at.head * rows.lse_head_stride + at.row;
    };

    float max = -INFINITY;  // of those that are numbers
#pragma unroll 4
    for (int32_t n = first_part; n < parts; n += kRowWeighers) {
        const float lse = *lse_of(params.part[n]);
        tile.weight[n][r] = lse;
        max = fmaxf(max, lse);
    }
    max = max_of_row(max);
    const float anchor = isinf(max) ? 0 : max;  // exp(inf - inf) would make NaN of a sum that is inf
    float sum = 0;
    for (int32_t n = first_part; n < parts; n += kRowWeighers) {
        const float lse = tile.weight[n][r];
        const float weight = lse == -INFINITY ? kCountsNothing : expf(lse - anchor);
        tile.weight[n][r] = weight;
        if (weight != kCountsNothing) sum += weight;
    }
    sum = sum_of_row(sum);
    for (int32_t n = first_part; n < parts; n += kRowWeighers)
        if (tile.weight[n][r] != kCountsNothing) tile.weight[n][r] /= sum;
    if (first_part != 0 || parts == 0) return;
    tile.place[r] = at;
    if (params.merged.lse != nullptr) *lse_of(params.merged) = anchor + logf(sum);
}

template <class Type>
__device__ Type* row_of(const MergeRows& rows, const Place& at) {
    return static_cast<Type*>(rows.out) + at.batch * rows.out_batch_stride + at.row * rows.out_row_stride +
           at.head * rows.out_head_stride;
}

// One pack of row r of the tile, its `c`-th.
template <class Config>
__device__ void sum_pack(const MergeParams& params, const Tile& tile, int32_t r, int64_t c) {
    using In = Format<Config::kIn>;
    using Out = Format<Config::kOut>;
    constexpr int32_t kSize = kPack<Config>;
    using InPack = Pack<typename In::Element, kSize>;
    using OutPack = Pack<typename Out::Element, kSize>;
    const Place& at = tile.place[r];

    float sum[kSize] = {};
    for (int32_t n = 0; n < params.parts; n += kLoadsAtOnce) {
        InPack values[kLoadsAtOnce];
        float weight[kLoadsAtOnce];
        // No branch around what counts nothing or is not there: loads under no condition overlap.
#pragma unroll
        for (int32_t j = 0; j < kLoadsAtOnce; ++j) {
            const int32_t part = min(n + j, params.parts - 1);
            values[j] = reinterpret_cast<const InPack*>(row_of<typename In::Element>(params.part[part], at))[c];
            weight[j] = n + j < params.parts ? tile.weight[part][r] : kCountsNothing;
        }
#pragma unroll
        for (int32_t j = 0; j < kLoadsAtOnce; ++j)
#pragma unroll
            for (int32_t i = 0; i < kSize; ++i)
                sum[i] = fmaf(weight[j], weight[j] == kCountsNothing ? 0 : In::widen(values[j].element[i]), sum[i]);
    }
    OutPack merged;
#pragma unroll
    for (int32_t i = 0; i < kSize; ++i) merged.element[i] = Out::round(sum[i]);
    reinterpret_cast<OutPack*>(row_of<typename Out::Element>(params.merged, at))[c] = merged;
}

// Step 2.
template <class Config>
__device__ void sum_rows(const MergeParams& params, const Tile& tile, int64_t first_row) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t row_threads = 1 << params.row_threads_log2;
    const int64_t rows_left = params.all_rows - first_row;
    const int32_t rows = rows_left < kMergeTileRows ? static_cast<int32_t>(rows_left) : kMergeTileRows;
    const int64_t packs = params.head_dim / kPack<Config>;
    for (int32_t r = thread >> params.row_threads_log2; r < rows; r += kMergeThreads >> params.row_threads_log2)
        for (int64_t c = thread & (row_threads - 1); c < packs; c += row_threads) sum_pack<Config>(params, tile, r, c);
}

template <class Config>
__global__ void __launch_bounds__(kMergeThreads) merge_tiles(const __grid_constant__ MergeParams params) {
    __shared__ Tile tile;
    for (int64_t first_row = int64_t{blockIdx.x} * kMergeTileRows; first_row < params.all_rows;
         first_row += int64_t{gridDim.x} * kMergeTileRows) {
        weigh(params, first_row, tile);
        __syncthreads();  // weights and places complete for all threads
        sum_rows<Config>(params, tile, first_row);
        __syncthreads();  // tile free for the next rows
    }
}

}  // namespace

template <DType kIn, DType kOut, bool kPacked>
const void* merge_kernel() {
    return reinterpret_cast<const void*>(&merge_tiles<Config<kIn, kOut, kPacked>>);
}

template const void* merge_kernel<DType::f32, DType::f32, true>();
template const void* merge_kernel<DType::f32, DType::f32, false>();
template const void* merge_kernel<DType::f32, DType::bf16, true>();
template const void* merge_kernel<DType::f32, DType::bf16, false>();
template const void* merge_kernel<DType::f32, DType::f16, true>();
template const void* merge_kernel<DType::f32, DType::f16, false>();
template const void* merge_kernel<DType::bf16, DType::bf16, true>();
template const void* merge_kernel<DType::bf16, DType::bf16, false>();
template const void* merge_kernel<DType::bf16, DType::f32, true>();
template const void* merge_kernel<DType::bf16, DType::f32, false>();
template const void* merge_kernel<DType::f16, DType::f16, true>();
template const void* merge_kernel<DType::f16, DType::f16, false>();
template const void* merge_kernel<DType::f16, DType::f32, true>();
template const void* merge_kernel<DType::f16, DType::f32, false>();

}  // namespace foveal::sm90
