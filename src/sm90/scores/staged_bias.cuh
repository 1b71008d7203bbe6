// A bias alone, of 16-bit elements: a warp copies its rows of a block to shared memory ahead of the scores, and its
// threads read them there in the layout of the scores.
#pragma once

#include <cstdint>

#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// The elements of a 16-bit matrix for a warp's 16 rows of a block. They lie in the warp's rows of a tile of panels in
// shared memory (tile/panel.cuh), before the scores are computed, and are read in the layout of the scores.
template <int32_t kKeys>
class StagedElements {
    static constexpr int32_t kVectors = kKeys / kVectorColumns;  // of a row
    static constexpr int32_t kRowsAtOnce = 32 / kVectors;        // that the lanes of a warp copy

   public:
    __device__ __forceinline__ StagedElements(uint16_t* staging, int32_t warp, int32_t lane)
        : base_(ptx::shared_address(staging)), first_row_(warp * kWarpRows), lane_(lane) {}

    // Begins to copy. data: from the warp's first row and the block's first column on. rows, columns: that there are
    // from there on; the others become zeros.
    __device__ __forceinline__ void fetch(const uint16_t* data, int64_t row_stride, int32_t rows,
                                          int32_t columns) const {
        const int32_t vector = lane_ % kVectors;
        const uint32_t panel = base_ + static_cast<uint32_t>(vector / kRowVectors) * kWarpgroupRows * kPanelRowBytes;
#pragma unroll
        for (int32_t i = 0; i < kWarpRows; i += kRowsAtOnce) {
            const int32_t row = i + lane_ / kVectors;
            ptx::copy_async(panel + swizzled(first_row_ + row, vector % kRowVectors),
                            data + row * row_stride + vector * kVectorColumns,
                            row < rows && vector * kVectorColumns < columns);
        }
    }

    // The pairs of 16 columns: of the thread's two rows in eight columns, then in the next eight.
    __device__ __forceinline__ void read(int32_t columns, uint32_t (&pairs)[4]) const {
        const int32_t vector = columns % 4 * 2 + lane_ / 16;
        ptx::ldmatrix_x4(base_ + static_cast<uint32_t>(columns / 4) * kWarpgroupRows * kPanelRowBytes +
                             swizzled(first_row_ + lane_ % 16, vector),
                         pairs);
    }

   private:
    const uint32_t base_;
    const int32_t first_row_, lane_;
};

// A block's bias, of 16-bit elements: s[i] = factor * s[i] + (bias_factor * its element + constants[its row]). Then
// -inf where the element is, whatever the score: an infinite one and -inf are no number together.
template <DType kType, int32_t kKeys>
__device__ __forceinline__ void add_staged_bias(float (&s)[Fragment::size(kKeys)], const StagedElements<kKeys>& bias,
                                                float factor, float bias_factor, const float (&constants)[2]) {
    uint32_t largest = 0;  // as numbers without a sign -inf is above all but NaN
#pragma unroll
    for (int32_t c = 0; c < kKeys / 16; ++c) {
        uint32_t pairs[4];
        bias.read(c, pairs);
        largest = __vimax3_u16x2(largest, pairs[0], pairs[1]);
        largest = __vimax3_u16x2(largest, pairs[2], pairs[3]);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            const float2 b = Format<kType>::unpack(pairs[i]);
            float* score = &s[8 * c + 2 * i];
            score[0] = fmaf(score[0], factor, fmaf(b.x, bias_factor, constants[Fragment::row_of_pair(i)]));
            score[1] = fmaf(score[1], factor, fmaf(b.y, bias_factor, constants[Fragment::row_of_pair(i)]));
        }
    }
    constexpr uint32_t kMinusInfinity = Format<kType>::kMinusInfinityBits;
    if (!__any_sync(~0u, (largest & 0xFFFF) >= kMinusInfinity || largest >> 16 >= kMinusInfinity)) return;
#pragma unroll
    for (int32_t c = 0; c < kKeys / 16; ++c) {
        uint32_t pairs[4];
        bias.read(c, pairs);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            const float2 b = Format<kType>::unpack(pairs[i]);
            if (b.x == -INFINITY) s[8 * c + 2 * i] = -INFINITY;
            if (b.y == -INFINITY) s[8 * c + 2 * i + 1] = -INFINITY;
        }
    }
}

}  // namespace foveal::sm90
