// Transposed scores in a warpgroup's registers (tile/fragment.hpp): rows are keys, columns are queries. What they are
// before and after a product.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Every column starts at its query's value.
template <int32_t kCount>
__device__ __forceinline__ void start_columns(float (&x)[kCount], const float* of_query) {
    const int32_t first = Fragment::first_column(ptx::lane_id());
#pragma unroll
    for (int32_t c = 0; c < kCount / Fragment::size(Fragment::kColumns) * Fragment::kColumns; c += Fragment::kColumns) {
        const auto pair = *reinterpret_cast<const float2*>(&of_query[first + c]);
#pragma unroll
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            x[Fragment::index(r, c)] = pair.x;
            x[Fragment::index(r, c + 1)] = pair.y;
        }
    }
}

// -inf where the query does not see the key. key, query: the thread's first; the band has no chunks.
template <int32_t kCount>
__device__ __forceinline__ void hide_columns(float (&x)[kCount], const Band& band, int32_t key, int32_t query) {
#pragma unroll
    for (int32_t r = 0; r < Fragment::kRows; ++r) {
        const int32_t row_key = key + r * Fragment::kRowDistance;
        // Columns, from the thread's first on, of the queries that see the key.
        const int32_t first = row_key < band.len_k ? row_key - band.high - query : kUnlimitedWidth;
        const int32_t last = row_key - band.low - query;
#pragma unroll
        for (int32_t i = 0; i < kCount; ++i)
            if (Fragment::row(i) == r && (Fragment::column_offset(i) < first || Fragment::column_offset(i) > last))
                x[i] = -INFINITY;
    }
}

// As a wgmma takes it for its A.
template <DType kType, int32_t kSteps, int32_t kCount>
__device__ __forceinline__ void round_operand(uint32_t (&to)[kSteps][4], const float (&from)[kCount]) {
    static_assert(kCount == 8 * kSteps);
#pragma unroll
    for (int32_t k = 0; k < kSteps; ++k)
#pragma unroll
        for (int32_t i = 0; i < Fragment::kPairsOfOperand; ++i)
            to[k][i] = Format<kType>::pack(from[8 * k + 2 * i], from[8 * k + 2 * i + 1]);
}

}  // namespace foveal::sm90
