// What a score is beyond scale * q.k under a window (contract 1.2): softcap, ALiBi, bias, boolean mask. Only the
// variants with options come here; all of it happens in the registers that hold Q K^T, before the softmax.
//
// Scores are in natural units, as the contract has them: in base 2 those near the end of f16 would be rounded to
// coarser steps than the reference's.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "forward_params.hpp"
#include "ptx/warp.cuh"
#include "tiles.hpp"
#include "work.cuh"

namespace foveal::sm90 {

template <ForwardConfig kConfig>
class Scores {
    static constexpr int32_t kScores = kConfig.tile.keys / 2;  // of a thread in a block

   public:
    // The thread's scores are those of rows `row` and `row` + 8 of the sequence against keys from first_key on, in the
    // layout of a wgmma accumulator (ptx/wgmma.cuh).
    __device__ __forceinline__ Scores(const ForwardParams& params, const Work& work, int32_t row, int32_t first_key,
                                      int32_t lane)
        : params_(params), work_(work), row_(row), first_key_(first_key + 2 * (lane % 4)) {}

    // From q.k to the score.
    __device__ __forceinline__ void apply(float (&s)[kScores]) const {
        const ScoreOptions& options = params_.scores;
        if (options.softcap > 0) {
            cap(s);
            if (options.alibi_slopes != nullptr) subtract_distances(s, 1.0f);
        } else if (options.alibi_slopes != nullptr) {
            subtract_distances(s, options.scale);
        } else {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) s[i] *= options.scale;
        }
        if (options.bias.data != nullptr) {
            if (options.bias_is_f32)
                add_bias<float>(s);
            else if constexpr (kConfig.dtype == DType::bf16)
                add_bias<__nv_bfloat16>(s);
            else
                add_bias<__half>(s);
        }
        if (options.mask.data != nullptr) hide(s);
    }

   private:
    // Of s[i]: its row, 0 or 8 below row_, and its column right of first_key_.
    static __device__ constexpr int32_t row_of(int32_t i) { return (i >> 1 & 1) * 8; }
    static __device__ constexpr int32_t column_of(int32_t i) { return (i >> 2) * 8 + (i & 1); }

    // c * tanh(x / c). Up to |x / c| = 0.5, where the scores of a trained model lie, by a polynomial on the FMA pipe
    // (launch.cpp); a block that reaches beyond, or past the sequence's end, takes two more MUFU operations a score,
    // which would cost more than a second exponential everywhere.
    __device__ __forceinline__ void cap(float (&s)[kScores]) const {
        const ScoreOptions& options = params_.scores;
        float largest = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) largest = fmaxf(largest, fabsf(s[i]));
        // What lies past the sequence's end must not decide; so there it is always the second way.
        const bool past_end = !inside(kScores - 1);
        if (__any_sync(~0u, past_end || largest > options.cap_end)) {
            const float to_exponent = options.cap_argument * static_cast<float>(2 * kLog2E),
                        twice = 2 * options.softcap;
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)  // tanh(y) = 1 - 2 / (1 + exp(2 y))
                s[i] = options.softcap - twice * __fdividef(1.0f, 1.0f + ptx::ex2(s[i] * to_exponent));
        } else {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) {
                const float u = s[i] * s[i];
                s[i] *= fmaf(u, fmaf(u, fmaf(u, options.cap[3], options.cap[2]), options.cap[1]), options.cap[0]);
            }
        }
    }

    // ALiBi: factor * s - slope * |i + off - j|.
    __device__ __forceinline__ void subtract_distances(float (&s)[kScores], float factor) const {
        const float slope = work_.slope;
        const auto distance = static_cast<float>(row_ + work_.band.off - first_key_);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            s[i] = fmaf(s[i], factor, -slope * fabsf(distance + static_cast<float>(row_of(i) - column_of(i))));
    }

    // Elements of `matrix` for this tile's head, from the thread's first row and column on.
    template <class T>
    __device__ __forceinline__ const T* elements(const ScoreMatrix& matrix) const {
        return static_cast<const T*>(matrix.data) + work_.batch * matrix.batch_stride +
               work_.head_q * matrix.head_stride + row_ * matrix.row_stride + first_key_;
    }

    // Rows and columns past the sequence's end are not in the matrix; the softmax masks them.
    __device__ __forceinline__ bool inside(int32_t i) const {
        return row_ + row_of(i) < work_.len_q && first_key_ + column_of(i) < work_.band.len_k;
    }

    template <class T>
    __device__ __forceinline__ void add_bias(float (&s)[kScores]) const {
        const T* bias = elements<T>(params_.scores.bias);
        const int64_t next_row = 8 * params_.scores.bias.row_stride;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            if (inside(i)) {
                const auto b = static_cast<float>(bias[(row_of(i) == 0 ? 0 : next_row) + column_of(i)]);
                s[i] = b == -INFINITY ? b : s[i] + b;  // hides the key, whatever its score
            }
    }

    __device__ __forceinline__ void hide(float (&s)[kScores]) const {
        const auto* visible = elements<uint8_t>(params_.scores.mask);
        const int64_t next_row = 8 * params_.scores.mask.row_stride;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            if (inside(i) && visible[(row_of(i) == 0 ? 0 : next_row) + column_of(i)] == 0) s[i] = -INFINITY;
    }

    const ForwardParams& params_;
    const Work& work_;
    const int32_t row_, first_key_;
};

}  // namespace foveal::sm90
