// merged = the parts put together (contract 1.5). Bound by memory: each element of the parts is read once.
//
// A CTA takes tiles of 64 rows, numbered (batch, row, head) so that neighbours are neighbours in memory:
//   1. Four threads a row read its log-sum-exps, write the merged one and leave the parts' weights in shared memory.
//      No other thread reads the row's log-sum-exps, so the merged one may replace one of them.
//   2. All threads sum the rows' elements, 16 bytes of each part at a time where alignment permits. An element is read
//      and written by one thread, so the merged row may replace one of the parts.
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/device.hpp"
#include "sm90/forward/launch.hpp"
#include "sm90/merge/merge.hpp"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {
namespace {

constexpr int32_t kThreads = 256;
constexpr int32_t kTileRows = 64;
constexpr int32_t kRowWeighers = kThreads / kTileRows;  // threads that share a row's parts in step 1
constexpr int32_t kPackBytes = 16;
constexpr int32_t kCtasPerSm = 8;
constexpr int32_t kLoadsAtOnce = 2;   // of each thread in step 2
constexpr float kCountsNothing = -1;  // in place of the weight of a part whose log-sum-exp is -inf

// What a kernel is compiled for. A type: nvcc 13.0 rejects kernels with a structure as template argument.
template <DType kInType, DType kOutType, bool kIsPacked>
struct Config {
    static constexpr DType kIn = kInType;
    static constexpr DType kOut = kOutType;
    static constexpr bool kPacked = kIsPacked;  // all rows can be read and written 16 bytes at a time
};

// A part or, written, the merged result.
struct Rows {
    void* out;   // [b, rows, h, d_v]
    float* lse;  // [b, h, rows] or, of the merged result, null
    int64_t out_batch_stride, out_row_stride, out_head_stride;
    int64_t lse_batch_stride, lse_head_stride;
};

struct Params {
    int64_t all_rows;  // b * rows * h
    int64_t rows;
    int64_t heads;
    int64_t head_dim;
    int32_t parts;
    int32_t row_threads_log2;  // threads that share a row in step 2
    Rows merged;
    Rows part[FOVEAL_MAX_MERGE_PARTS];
};
static_assert(sizeof(Params) <= 4096, "the parameters of a kernel");

struct Place {
    int64_t batch, row, head;
};

struct Tile {
    Place place[kTileRows];
    float weight[FOVEAL_MAX_MERGE_PARTS][kTileRows];
};

// Elements that one load brings.
template <class Config>
constexpr int32_t kPack = Config::kPacked ? kPackBytes / Format<Config::kIn>::kBytes : 1;

template <class Type, int32_t kSize>
struct alignas(kSize == 1 ? sizeof(Type) : kPackBytes) Pack {
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
__device__ void weigh(const Params& params, int64_t first_row, Tile& tile) {
    const int32_t r = static_cast<int32_t>(threadIdx.x) / kRowWeighers;
    const int32_t first_part = static_cast<int32_t>(threadIdx.x) % kRowWeighers;
    const int64_t i = first_row + r;
    const int32_t parts = i < params.all_rows ? params.parts : 0;  // a row past the end takes part in the shuffles
    const Place at{i / params.heads / params.rows, i / params.heads % params.rows, i % params.heads};
    const auto lse_of = [&at](const Rows& rows) {
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
__device__ Type* row_of(const Rows& rows, const Place& at) {
    return static_cast<Type*>(rows.out) + at.batch * rows.out_batch_stride + at.row * rows.out_row_stride +
           at.head * rows.out_head_stride;
}

// One pack of row r of the tile, its `c`-th.
template <class Config>
__device__ void sum_pack(const Params& params, const Tile& tile, int32_t r, int64_t c) {
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
__device__ void sum_rows(const Params& params, const Tile& tile, int64_t first_row) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t row_threads = 1 << params.row_threads_log2;
    const int64_t rows_left = params.all_rows - first_row;
    const int32_t rows = rows_left < kTileRows ? static_cast<int32_t>(rows_left) : kTileRows;
    const int64_t packs = params.head_dim / kPack<Config>;
    for (int32_t r = thread >> params.row_threads_log2; r < rows; r += kThreads >> params.row_threads_log2)
        for (int64_t c = thread & (row_threads - 1); c < packs; c += row_threads) sum_pack<Config>(params, tile, r, c);
}

template <class Config>
__global__ void __launch_bounds__(kThreads) merge_tiles(const __grid_constant__ Params params) {
    __shared__ Tile tile;
    for (int64_t first_row = int64_t{blockIdx.x} * kTileRows; first_row < params.all_rows;
         first_row += int64_t{gridDim.x} * kTileRows) {
        weigh(params, first_row, tile);
        __syncthreads();  // weights and places complete for all threads
        sum_rows<Config>(params, tile, first_row);
        __syncthreads();  // tile free for the next rows
    }
}

struct Kernel {
    DType in;
    DType out;
    bool packed;
    void (*run)(const Params);
};

template <DType kIn, DType kOut, bool kPacked>
constexpr Kernel kernel() {
    return {kIn, kOut, kPacked, &merge_tiles<Config<kIn, kOut, kPacked>>};
}

// One row a Config; validate() lets no other types through.
constexpr Kernel kKernels[] = {
    kernel<DType::f32, DType::f32, true>(),   kernel<DType::f32, DType::f32, false>(),
    kernel<DType::bf16, DType::bf16, true>(), kernel<DType::bf16, DType::bf16, false>(),
    kernel<DType::bf16, DType::f32, true>(),  kernel<DType::bf16, DType::f32, false>(),
    kernel<DType::f16, DType::f16, true>(),   kernel<DType::f16, DType::f16, false>(),
    kernel<DType::f16, DType::f32, true>(),   kernel<DType::f16, DType::f32, false>(),
};

const void* kernel_of(const Merge& merge, bool packed) {
    for (const Kernel& kernel : kKernels)
        if (kernel.in == merge.dtype && kernel.out == merge.out_dtype && kernel.packed == packed)
            return reinterpret_cast<const void*>(kernel.run);
    throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 merge kernel for this merge");
}

bool rows_can_be_packed(const MergePart& part, DType dtype) {
    const auto fits = [&](int64_t stride) { return stride * bytes_of(dtype) % kPackBytes == 0; };
    return reinterpret_cast<uintptr_t>(part.out) % kPackBytes == 0 && fits(part.out_stride.batch) &&
           fits(part.out_stride.row) && fits(part.out_stride.head);
}

bool can_be_packed(const Merge& merge) {
    const auto end = merge.part.begin() + merge.parts;
    return merge.head_dim * bytes_of(merge.dtype) % kPackBytes == 0 &&
           std::all_of(merge.part.begin(), end,
                       [&](const MergePart& part) { return rows_can_be_packed(part, merge.dtype); }) &&
           rows_can_be_packed(merge.merged, merge.out_dtype);
}

Rows rows_of(const MergePart& part) {
    return {part.out,
            part.lse,
            part.out_stride.batch,
            part.out_stride.row,
            part.out_stride.head,
            part.lse_stride.batch,
            part.lse_stride.head};
}

// As many as a row has packs, rounded up to a power of two, but not more than the CTA has.
int32_t row_threads_log2_of(const Merge& merge, bool packed) {
    const int64_t packs = packed ? merge.head_dim * bytes_of(merge.dtype) / kPackBytes : merge.head_dim;
    const int64_t threads = std::clamp<int64_t>(packs, 1, kThreads);
    return std::bit_width(static_cast<uint32_t>(threads - 1));
}

Params params_of(const Merge& merge, bool packed) {
    Params params{};
    params.all_rows = merge.all_rows();
    params.rows = merge.rows;
    params.heads = merge.heads;
    params.head_dim = merge.head_dim;
    params.parts = merge.parts;
    params.row_threads_log2 = row_threads_log2_of(merge, packed);
    params.merged = rows_of(merge.merged);
    for (int32_t n = 0; n < merge.parts; ++n) params.part[n] = rows_of(merge.part[static_cast<size_t>(n)]);
    return params;
}

}  // namespace

void launch_merge(const Merge& merge, void* stream) {
    const int32_t device = device_of(stream);
    const DeviceTraits& traits = traits_of(device);
    if (merge.all_rows() == 0) return;
    const CurrentDevice current(device);
    const bool packed = can_be_packed(merge);
    Params params = params_of(merge, packed);
    void* arguments[] = {&params};

    const int64_t tiles = (params.all_rows + kTileRows - 1) / kTileRows;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(tiles, int64_t{traits.sms} * kCtasPerSm)));
    config.blockDim = dim3(kThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelExC(&config, kernel_of(merge, packed), arguments), "launch of the sm90 merge kernel");
}

}  // namespace foveal::sm90
