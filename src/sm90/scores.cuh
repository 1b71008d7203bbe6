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
            cap<false>(s, {});
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

    // From q.k to the exponents score * log2(e) + minus_reference, of each row, where that is cheaper than the score
    // first; false: not done.
    __device__ __forceinline__ bool apply_to_exponents(float (&s)[kScores], const float (&minus_reference)[2]) const {
        const ScoreOptions& options = params_.scores;
        const bool only_capped = options.softcap > 0 && options.alibi_slopes == nullptr &&
                                 options.bias.data == nullptr && options.mask.data == nullptr;
        if (only_capped) cap<true>(s, {minus_reference[0], minus_reference[1]});
        return only_capped;
    }

   private:
    struct RowPair {
        float of[2];
    };

    // Of s[i]: its row, 0 or 8 below row_, and its column right of first_key_.
    static __device__ constexpr int32_t row_of(int32_t i) { return (i >> 1 & 1) * 8; }
    static __device__ constexpr int32_t column_of(int32_t i) { return (i >> 2) * 8 + (i & 1); }

    // c * tanh(x / c). Up to |x / c| = 0.5, where the scores of a trained model lie, by a polynomial on the FMA pipe
    // (launch.cpp), up to 0.3 by a shorter one; where a warp's scores reach beyond, they take two more MUFU operations
    // each, which would cost more than a second exponential everywhere. 32 scores a time, or 16, whose squares stay in
    // registers meanwhile. kToExponents: multiplied by log2(e), plus minus_reference.
    template <bool kToExponents>
    __device__ __forceinline__ void cap(float (&s)[kScores], RowPair minus_reference) const {
        constexpr int32_t kPart = kConfig.tile.accumulators() + kScores > 128 ? 16 : 32;
        const ScoreOptions& options = params_.scores;
#pragma unroll
        for (int32_t first = 0; first < kScores; first += kPart) {
            float u[kPart];
            uint32_t largest = 0;  // as bits, whose order is that of numbers that are not negative
#pragma unroll
            for (int32_t i = 0; i < kPart; ++i) u[i] = s[first + i] * s[first + i];
#pragma unroll
            for (int32_t i = 0; i < kPart; i += 2)
                largest = __vimax3_u32(largest, __float_as_uint(u[i]), __float_as_uint(u[i + 1]));
            if (__all_sync(~0u, __uint_as_float(largest) <= options.cap[0].end))
                cap_by_polynomial<kToExponents, 2>(s, u, first, options.cap[0], minus_reference);
            else if (__all_sync(~0u, __uint_as_float(largest) <= options.cap[1].end))
                cap_by_polynomial<kToExponents, 3>(s, u, first, options.cap[1], minus_reference);
            else
                cap_by_exponentials<kToExponents, kPart>(s, first, minus_reference);
        }
    }

    // s from `first` on, whose squares are u.
    template <bool kToExponents, int32_t kDegree, int32_t kPart>
    __device__ __forceinline__ void cap_by_polynomial(float (&s)[kScores], const float (&u)[kPart], int32_t first,
                                                      const CapPolynomial& cap, RowPair minus_reference) const {
        float c[kDegree + 1];
#pragma unroll
        for (int32_t k = 0; k <= kDegree; ++k)
            c[k] = kToExponents ? cap.coefficients[k] * static_cast<float>(kLog2E) : cap.coefficients[k];
#pragma unroll
        for (int32_t i = 0; i < kPart; ++i) {
            float factor = c[kDegree];
#pragma unroll
            for (int32_t k = kDegree - 1; k >= 0; --k) factor = fmaf(u[i], factor, c[k]);
            float& x = s[first + i];
            x = kToExponents ? fmaf(x, factor, minus_reference.of[(i >> 1) & 1]) : x * factor;
        }
    }

    template <bool kToExponents, int32_t kPart>
    __device__ __forceinline__ void cap_by_exponentials(float (&s)[kScores], int32_t first,
                                                        RowPair minus_reference) const {
        const ScoreOptions& options = params_.scores;
        const float to_exponent = options.cap_argument * static_cast<float>(2 * kLog2E), twice = 2 * options.softcap;
#pragma unroll
        for (int32_t i = 0; i < kPart; ++i) {  // tanh(y) = 1 - 2 / (1 + exp(2 y))
            float& x = s[first + i];
            x = options.softcap - twice * __fdividef(1.0f, 1.0f + ptx::ex2(x * to_exponent));
            if constexpr (kToExponents) x = fmaf(x, static_cast<float>(kLog2E), minus_reference.of[(i >> 1) & 1]);
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
