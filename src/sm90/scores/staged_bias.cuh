// A bias alone, of 16-bit elements: a warp copies its rows of a block to shared memory ahead of the scores, and its
// threads read them there in the layout of the scores. Whether it is copied in vectors or element by element changes no
// bit.
#pragma once

#include <cstdint>

#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/base_2.hpp"
#include "sm90/scores/options.hpp"
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
    __device__ __forceinline__ void fetch(const uint16_t* data, const ScoreMatrix& matrix, int32_t rows,
                                          int32_t columns) const {
        if (matrix.in_vectors)
            fetch_vectors(data, matrix.row_stride, rows, columns);
        else
            fetch_elements(data, matrix, rows, columns);
    }

    // The pairs of 16 columns: of the thread's two rows in eight columns, then in the next eight.
    __device__ __forceinline__ void read(int32_t columns, uint32_t (&pairs)[4]) const {
        const int32_t vector = columns % 4 * 2 + lane_ / 16;
        ptx::ldmatrix_x4(base_ + static_cast<uint32_t>(columns / 4) * kWarpgroupRows * kPanelRowBytes +
                             swizzled(first_row_ + lane_ % 16, vector),
                         pairs);
    }

    // Is one of the warp's elements at least the positive 16-bit number of these bits? (Those of positive ones ascend.)
    __device__ __forceinline__ bool reach(uint32_t bits) const {
        uint32_t largest = 0;
#pragma unroll
        for (int32_t c = 0; c < kKeys / 16; ++c) {
            uint32_t pairs[4];
            read(c, pairs);
            largest = __vimax3_s16x2(__vimax3_s16x2(largest, pairs[0], pairs[1]), pairs[2], pairs[3]);
        }
        return __any_sync(~0u, (largest & 0xFFFF) >= bits || largest >> 16 >= bits);
    }

   private:
    __device__ __forceinline__ void fetch_vectors(const uint16_t* data, int64_t row_stride, int32_t rows,
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

    // Of a matrix whose rows are no whole vectors. Neighbouring lanes read neighbours, a few rows at a time.
    __device__ __forceinline__ void fetch_elements(const uint16_t* data, const ScoreMatrix& matrix, int32_t rows,
                                                   int32_t columns) const {
        constexpr int32_t kOfRow = kKeys / 32;  // that a lane copies
        constexpr int32_t kRowsAhead = 4;       // under way at once
#pragma unroll 1
        for (int32_t first = 0; first < kWarpRows; first += kRowsAhead) {
            uint16_t elements[kRowsAhead][kOfRow];
#pragma unroll
            for (int32_t i = 0; i < kRowsAhead; ++i)
#pragma unroll
                for (int32_t n = 0; n < kOfRow; ++n) {
                    const int32_t row = first + i, column = 32 * n + lane_;
                    elements[i][n] = 0;
                    if (row < rows && column < columns)
                        elements[i][n] = __ldg(data + row * matrix.row_stride + column * matrix.key_stride);
                }
#pragma unroll
            for (int32_t i = 0; i < kRowsAhead; ++i)
#pragma unroll
                for (int32_t n = 0; n < kOfRow; ++n) *element_at(first + i, 32 * n + lane_) = elements[i][n];
        }
    }

    __device__ __forceinline__ uint16_t* element_at(int32_t row, int32_t column) const {
        const int32_t vector = column / kVectorColumns;
        return static_cast<uint16_t*>(__cvta_shared_to_generic(base_)) +
               vector / kRowVectors * kWarpgroupRows * kPanelColumns +
               swizzled(first_row_ + row, vector % kRowVectors) / 2 + column % kVectorColumns;
    }

    const uint32_t base_;
    const int32_t first_row_, lane_;
};

// What a score is beside a wide element b (base_2.hpp), -inf among them: factor * b + offset, of b's sign. The score
// and its reference are lost in that; and an infinite score and -inf would be no number together.
struct WideElements {
    float factor, offset;
};
inline constexpr WideElements kNaturalElements{1.0f, 0.0f};
inline constexpr WideElements kBase2Elements{static_cast<float>(kLog2E / 8),
                                             static_cast<float>(kLog2E * 7 / 8) * kStraightEnd};

// A block's bias, of 16-bit elements: s[i] = factor * s[i] + (bias_factor * its element + constants[its row]).
template <DType kType, int32_t kKeys>
__device__ __forceinline__ void add_staged_bias(float (&s)[Fragment::size(kKeys)], const StagedElements<kKeys>& bias,
                                                float factor, float bias_factor, const float (&constants)[2],
                                                WideElements wide) {
    using Format = sm90::Format<kType>;
    uint32_t largest = 0;
#pragma unroll
    for (int32_t c = 0; c < kKeys / 16; ++c) {
        uint32_t pairs[4];
        bias.read(c, pairs);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            largest = Format::larger_magnitude(pairs[i], largest);
            const float2 b = Format::unpack(pairs[i]);
            float* score = &s[8 * c + 2 * i];
            score[0] = fmaf(score[0], factor, fmaf(b.x, bias_factor, constants[Fragment::row_of_pair(i)]));
            score[1] = fmaf(score[1], factor, fmaf(b.y, bias_factor, constants[Fragment::row_of_pair(i)]));
        }
    }
    if (!__any_sync(~0u, (largest & 0xFFFF) >= Format::kWideBits || largest >> 16 >= Format::kWideBits)) return;
    const auto correct = [wide](float& score, float b) {
        if (fabsf(b) >= kStraightEnd) score = fmaf(b, wide.factor, copysignf(wide.offset, b));
    };
#pragma unroll
    for (int32_t c = 0; c < kKeys / 16; ++c) {
        uint32_t pairs[4];
        bias.read(c, pairs);
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            const float2 b = Format::unpack(pairs[i]);
            correct(s[8 * c + 2 * i], b.x);
            correct(s[8 * c + 2 * i + 1], b.y);
        }
    }
}

}  // namespace foveal::sm90
