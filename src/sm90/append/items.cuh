// Items of new rows (params.hpp), as the append kernel stores them and the kernel that works scales out measures them.
#pragma once

#include "sm90/append/params.hpp"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {

// What a kernel is compiled for. A type: nvcc 13.0 rejects kernels with a structure as template argument.
template <DType kInType, DType kCacheType, bool kIsPacked>
struct AppendConfig {
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
    int32_t in_head;
    const void* from;  // of kIn, the head's row
};

// An item, turned: one vector, or those of its pairs.
template <class Config>
struct Turned {
    float x[kVector<Config>], y[kVector<Config>];
    int32_t first, second;  // where they begin in the row
    bool is_pair;
};

// Steps 2 and 3.
template <class Config>
__device__ void load_item(const AppendParams& params, const AppendStream& stream, const Item& item, int64_t position,
                          Turned<Config>& turned) {
    constexpr int32_t kSize = kVector<Config>;
    turned.is_pair = item.in_head < stream.turning_items;
    if (!turned.is_pair) {
        turned.first = 2 * params.pairs * (stream.turning_items > 0) + (item.in_head - stream.turning_items) * kSize;
        load<Config::kIn>(turned.x, item.from, turned.first);
        return;
    }
    const int32_t pair = item.in_head * kSize;
    turned.first = params.interleaved ? 2 * pair : pair;
    turned.second = turned.first + (params.interleaved ? kSize : params.pairs);
    float cos[kSize], sin[kSize];
    load<Config::kIn>(turned.x, item.from, turned.first);
    load<Config::kIn>(turned.y, item.from, turned.second);
    load_angles<Config>(params, position, pair, cos, sin);
    if (params.interleaved) to_pairs(turned.x, turned.y);
    turn(turned.x, turned.y, cos, sin);
    if (params.interleaved) to_neighbours(turned.x, turned.y);
}

}  // namespace foveal::sm90
