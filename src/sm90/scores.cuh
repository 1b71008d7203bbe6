// What a score is beyond scale * q.k under a window (contract 1.2): softcap, ALiBi, bias, boolean mask. Only the
// general variant of the kernel comes here; all of it happens in the registers that hold Q K^T, before the softmax.
//
// Scores are held in base 2: x * log2(e).
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
    static constexpr float kLog2E = 1.44269504088896f;

   public:
    // The thread's scores are those of rows `row` and `row` + 8 of the sequence against keys from first_key on, in the
    // layout of a wgmma accumulator (ptx/wgmma.cuh).
    __device__ __forceinline__ Scores(const ForwardParams& params, const Work& work, int32_t row, int32_t first_key,
                                      int32_t lane)
        : params_(params), work_(work), row_(row), first_key_(first_key + 2 * (lane % 4)) {}

    // From q.k to the score.
    __device__ __forceinline__ void apply(float (&s)[kScores]) const {
        const ScoreOptions& options = params_.scores;
        if (options.capped_log2 > 0) {
            cap(s);
        } else {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) s[i] *= params_.scale_log2;
        }
        if (options.alibi_slopes != nullptr) subtract_distances(s);
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

    // c * tanh(x / c). Below kPolynomialEnd, where the scores of a trained model lie, tanh(y) = y P(y^2) with a
    // relative error of 6e-7 (minimax, Remez), on the FMA pipe; a block that reaches beyond takes two more MUFU
    // operations a score, which would cost more than a second exponential everywhere.
    __device__ __forceinline__ void cap(float (&s)[kScores]) const {
        constexpr float kPolynomialEnd = 0.75f;
        const float to_argument = params_.scores.cap_argument, capped = params_.scores.capped_log2;
        float largest = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) largest = fmaxf(largest, fabsf(s[i]));
        if (__any_sync(~0u, largest * fabsf(to_argument) > kPolynomialEnd)) {
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) {
                const float e = ptx::ex2(s[i] * to_argument * (2 * kLog2E));  // tanh(y) = 1 - 2 / (1 + exp(2 y))
                s[i] = capped - 2 * capped * __fdividef(1.0f, 1.0f + e);
            }
        } else {
            const float scale = capped * to_argument;
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i) {
                const float y = s[i] * to_argument, u = y * y;
                float p = fmaf(u, 0.012929632f, -0.050056303f);
                p = fmaf(u, p, 0.13258983f);
                p = fmaf(u, p, -0.33328252f);
                p = fmaf(u, p, 0.99999943f);
                s[i] *= scale * p;
            }
        }
    }

    // ALiBi: slope * |i + off - j|.
    __device__ __forceinline__ void subtract_distances(float (&s)[kScores]) const {
        const float slope = work_.slope_log2;
        const auto distance = static_cast<float>(row_ + work_.band.off - first_key_);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            s[i] -= slope * fabsf(distance + static_cast<float>(row_of(i) - column_of(i)));
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
                const T b = bias[(row_of(i) == 0 ? 0 : next_row) + column_of(i)];
                s[i] = fmaf(static_cast<float>(b), kLog2E, s[i]);
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
