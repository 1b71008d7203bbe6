// How gradients leave the registers: scaled, rounded, to global memory.
#pragma once

#include <cstdint>

#include "sm90/backward/params.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Where a warp's 16 rows belong.
struct GradientTile {
    int32_t batch, first_row, head;
    int32_t row;   // of the sequence, the warp's first
    int32_t rows;  // that the sequence has
};

// Neighbouring lanes exchange pairs of columns, so that each has four columns side by side: of even lanes they come
// from the first eight of 16 columns, of odd ones from the others. columns: that the tensor has, a multiple of eight.
template <DType kType, int32_t kCount>
__device__ __forceinline__ void store_gradient(const float (&x)[kCount], const BackwardOut& out,
                                               const GradientTile& tile, int32_t columns, float scale) {
    if (out.data == nullptr) return;
    using Rounded = Format<kType>;
    const int32_t lane = ptx::lane_id();
    const bool is_odd = (lane & 1) != 0;
    const int32_t first_column = is_odd ? 8 + 2 * (lane % Fragment::kRowLanes - 1) : Fragment::first_column(lane);
#pragma unroll
    for (int32_t r = 0; r < Fragment::kRows; ++r) {
        const int32_t row = tile.row + Fragment::first_row(lane) + r * Fragment::kRowDistance;
        auto* to = static_cast<uint16_t*>(out.data) + tile.batch * out.batch_stride +
                   int64_t{tile.first_row + row} * out.row_stride + tile.head * out.head_stride + first_column;
#pragma unroll
        for (int32_t c = 0; c < kCount / Fragment::size(Fragment::kColumns) * Fragment::kColumns;
             c += 2 * Fragment::kColumns) {
            const int32_t i = Fragment::index(r, c), j = Fragment::index(r, c + Fragment::kColumns);
            const uint32_t left = Rounded::pack(x[i] * scale, x[i + 1] * scale);
            const uint32_t right = Rounded::pack(x[j] * scale, x[j + 1] * scale);
            const uint32_t received = __shfl_xor_sync(~0u, is_odd ? left : right, 1);
            if (row < tile.rows && c + first_column < columns)
                *reinterpret_cast<uint2*>(to + c) = is_odd ? uint2{received, right} : uint2{left, received};
        }
    }
}

}  // namespace foveal::sm90
