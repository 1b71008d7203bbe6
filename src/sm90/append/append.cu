// The append kernel (contract 1.12): rows of k, v and q, turned by their rotary embedding, scaled, converted and
// stored.
//
// A CTA takes cta_rows new rows, a thread one item of them after the other:
//   1. finds the item's place in the cache, which no other step waits for but the store;
//   2. loads the item, one or two vectors;
//   3. turns its pairs, by cos and sin of the row's position;
//   4. divides by the scale, rounds and stores.
// The memory bus is the bound: a row is read once and written once, cos and sin come from the caches.
#include "sm90/append/params.hpp"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {
namespace {

// What a kernel is compiled for. A type: nvcc 13.0 rejects kernels with a structure as template argument.
template <DType kInType, DType kCacheType, bool kIsPacked>
struct Config {
    static constexpr DType kIn = kInType;
    static constexpr DType kCache = kCacheType;
    static constexpr bool kPacked = kIsPacked;  // all is read and written a vector at a time
};

// Elements of a vector.
template <class Config>
constexpr int32_t kVector = Config::kPacked ? kAppendVectorBytes / Format<Config::kIn>::kBytes : 1;

template <class Element, int32_t kSize>
struct alignas(sizeof(Element) * kSize) Vector {
    Element element[kSize];
};

template <DType kType, int32_t kSize>
__device__ void load(float (&x)[kSize], const void* row, int64_t i) {
    using Row = Vector<typename Format<kType>::Element, kSize>;
    const Row vector = *reinterpret_cast<const Row*>(static_cast<const typename Format<kType>::Element*>(row) + i);
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) x[n] = Format<kType>::widen(vector.element[n]);
}

template <DType kType, int32_t kSize>
__device__ void store(const float (&x)[kSize], void* row, int64_t i) {
    using Row = Vector<typename Format<kType>::Element, kSize>;
    Row vector;
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) vector.element[n] = Format<kType>::round(x[n]);
    *reinterpret_cast<Row*>(static_cast<typename Format<kType>::Element*>(row) + i) = vector;
}

// Step 3. (x, y) are the pairs. Each operation is rounded for itself, as foveal.h says.
template <int32_t kSize>
__device__ void turn(float (&x)[kSize], float (&y)[kSize], const float (&cos)[kSize], const float (&sin)[kSize]) {
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) {
        const float turned = __fsub_rn(__fmul_rn(x[n], cos[n]), __fmul_rn(y[n], sin[n]));
        y[n] = __fadd_rn(__fmul_rn(y[n], cos[n]), __fmul_rn(x[n], sin[n]));
        x[n] = turned;
    }
}

// Of two vectors of neighbours the pairs of neighbours, and back.
template <int32_t kSize>
__device__ void to_pairs(float (&a)[kSize], float (&b)[kSize]) {
    float all[2 * kSize];
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) all[n] = a[n], all[kSize + n] = b[n];
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) a[n] = all[2 * n], b[n] = all[2 * n + 1];
}
template <int32_t kSize>
__device__ void to_neighbours(float (&a)[kSize], float (&b)[kSize]) {
    float all[2 * kSize];
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) all[2 * n] = a[n], all[2 * n + 1] = b[n];
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) a[n] = all[n], b[n] = all[kSize + n];
}

template <int32_t kSize>
__device__ void divide(float (&x)[kSize], const AppendStream& stream, int32_t head) {
    if (stream.scale == nullptr) return;
    const float scale = stream.scale[head * stream.scale_stride];
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) x[n] = __fdiv_rn(x[n], scale);
}

// cos and sin of `kSize` pairs from pair `i` on.
template <class Config>
__device__ void load_angles(const AppendParams& params, int64_t position, int32_t i, float (&cos)[kVector<Config>],
                            float (&sin)[kVector<Config>]) {
    const int64_t cos_at = position * params.cos_stride + i, sin_at = position * params.sin_stride + i;
    if (params.angles_are_f32) {
#pragma unroll
        for (int32_t n = 0; n < kVector<Config>; ++n) {  // whole vectors or not, 32 bytes at most: the caches have them
            cos[n] = static_cast<const float*>(params.cos)[cos_at + n];
            sin[n] = static_cast<const float*>(params.sin)[sin_at + n];
        }
    } else {
        load<Config::kIn>(cos, params.cos, cos_at);
        load<Config::kIn>(sin, params.sin, sin_at);
    }
}

struct Item {
    int32_t head, in_head;
    const void* from;  // of kIn, the head's row
    void* to;
};

// Steps 2 to 4 of one item, whose row ends up as kTo.
template <class Config, DType kTo>
__device__ void write_item(const AppendParams& params, const AppendStream& stream, const Item& item, int64_t position) {
    constexpr int32_t kSize = kVector<Config>;
    if (item.in_head >= stream.turning_items) {
        const int32_t i = 2 * params.pairs * (stream.turning_items > 0) + (item.in_head - stream.turning_items) * kSize;
        float x[kSize];
        load<Config::kIn>(x, item.from, i);
        divide(x, stream, item.head);
        store<kTo>(x, item.to, i);
        return;
    }
    const int32_t pair = item.in_head * kSize;
    const int32_t first = params.interleaved ? 2 * pair : pair;
    const int32_t second = first + (params.interleaved ? kSize : params.pairs);
    float x[kSize], y[kSize], cos[kSize], sin[kSize];
    load<Config::kIn>(x, item.from, first);
    load<Config::kIn>(y, item.from, second);
    load_angles<Config>(params, position, pair, cos, sin);
    if (params.interleaved) to_pairs(x, y);
    turn(x, y, cos, sin);
    if (params.interleaved) to_neighbours(x, y);
    divide(x, stream, item.head);
    divide(y, stream, item.head);
    store<kTo>(x, item.to, first);
    store<kTo>(y, item.to, second);
}

// A new row: [outer, row] of [b, rows].
struct NewRow {
    int64_t outer, row;
    AppendPlace place;
};

// Item `i` of the new row, if it is one of k, of v or of q; else i is what is left of it.
template <class Config, DType kTo, bool kInCache>
__device__ bool append_to(const AppendParams& params, const AppendStream& stream, const NewRow& at, int32_t& i) {
    const int32_t items = stream.heads * stream.items;
    if (i >= items) {
        i -= items;
        return false;
    }
    if (kInCache && at.place.page < 0) return true;
    const int32_t head = i / stream.items;
    const int64_t from =
        at.outer * stream.from_batch_stride + at.row * stream.from_row_stride + head * stream.from_head_stride;
    const int64_t to = (kInCache ? at.place.page : at.outer) * stream.to_batch_stride +
                       (kInCache ? at.place.row : at.row) * stream.to_row_stride + head * stream.to_head_stride;
    const Item item{head, i % stream.items,
                    static_cast<const typename Format<Config::kIn>::Element*>(stream.from) + from,
                    static_cast<typename Format<kTo>::Element*>(stream.to) + to};
    write_item<Config, kTo>(params, stream, item, at.place.position);
    return true;
}

template <class Config>
__device__ void append_item(const AppendParams& params, int64_t outer, int64_t row, int32_t i) {
    const NewRow at{outer, row, params.places.of(outer, row)};
    const auto& [k, v, q] = params.streams;
    if (append_to<Config, Config::kCache, true>(params, k, at, i)) return;
    if (append_to<Config, Config::kCache, true>(params, v, at, i)) return;
    append_to<Config, Config::kIn, false>(params, q, at, i);
}

template <class Config>
__global__ void __launch_bounds__(kAppendThreads) append_rows(const __grid_constant__ AppendParams params) {
    cudaGridDependencySynchronize();  // the kernel before may still write what is read here
    cudaTriggerProgrammaticLaunchCompletion();
    const int64_t first_row = int64_t{blockIdx.x} * params.cta_rows;
    const int64_t rows_left = params.all_rows - first_row;
    const int32_t rows = rows_left < params.cta_rows ? static_cast<int32_t>(rows_left) : params.cta_rows;
    for (int32_t t = static_cast<int32_t>(threadIdx.x); t < rows * params.row_items; t += kAppendThreads) {
        const int64_t i = first_row + t / params.row_items;
        append_item<Config>(params, i / params.places.rows, i % params.places.rows, t % params.row_items);
    }
}

}  // namespace

template <DType kIn, DType kCache, bool kPacked>
const void* append_kernel() {
    return reinterpret_cast<const void*>(&append_rows<Config<kIn, kCache, kPacked>>);
}

#define FOVEAL_APPEND_KERNELS(in, cache)                                 \
    template const void* append_kernel<DType::in, DType::cache, true>(); \
    template const void* append_kernel<DType::in, DType::cache, false>();
FOVEAL_APPEND_KERNELS(f32, f32)
FOVEAL_APPEND_KERNELS(f32, bf16)
FOVEAL_APPEND_KERNELS(f32, f16)
FOVEAL_APPEND_KERNELS(bf16, f32)
FOVEAL_APPEND_KERNELS(bf16, bf16)
FOVEAL_APPEND_KERNELS(bf16, f16)
FOVEAL_APPEND_KERNELS(f16, f32)
FOVEAL_APPEND_KERNELS(f16, bf16)
FOVEAL_APPEND_KERNELS(f16, f16)
#undef FOVEAL_APPEND_KERNELS

}  // namespace foveal::sm90
