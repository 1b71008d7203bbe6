// What a score is beyond scale * q.k under a window (contract 1.2): softcap, ALiBi, bias, boolean mask. Only the
// variants that change the scores come here; all of it happens in the registers that hold Q K^T, before the softmax.
//
// Scores are in natural units, as the contract has them: in base 2 those near the end of f16 would be rounded to
// coarser steps than the reference's.
#pragma once

#include "sm90/forward/params.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/matrix.cuh"
#include "sm90/scores/softcap.hpp"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/instruction_order.cuh"

namespace foveal::sm90 {

template <ForwardConfig kConfig>
class Scores {
    static constexpr int32_t kScores = Fragment::size(kConfig.tile.keys);

   public:
    // The thread's scores are those of two of the warp's rows against keys from first_key on (tile/fragment.hpp).
    __device__ __forceinline__ Scores(const ForwardParams& params, const Work& work, const RowGroup& rows,
                                      int32_t first_key, int32_t lane)
        : params_(params),
          work_(work),
          slope_(rows.slope),
          head_(rows.head),
          row_(rows.query + Fragment::first_row(lane)),
          first_key_(first_key + Fragment::first_column(lane)) {}

    // From q.k to the score. true: softcap took the exact form.
    __device__ __forceinline__ bool apply(float (&s)[kScores]) const {
        const ScoreOptions& options = params_.scores;
        if constexpr (kConfig.has_softcap()) return cap(s);
        bool exactly = false;
        if (options.softcap > 0) {
            exactly = cap(s);
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
            else
                add_bias<typename Format<kConfig.dtype>::Element>(s);
        }
        if (options.mask.data != nullptr) hide(s);
        return exactly;
    }

    // c * tanh(x / c), of any x.
    static __device__ __forceinline__ void cap_exactly(const ScoreOptions& options, float (&s)[kScores]) {
        const float to_exponent = options.cap_argument * static_cast<float>(2 * kLog2E), twice = 2 * options.softcap;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)  // tanh(y) = 1 - 2 / (1 + exp(2 y))
            s[i] = options.softcap - twice * __fdividef(1.0f, 1.0f + ptx::ex2(s[i] * to_exponent));
    }

   private:
    // c * tanh(x / c). Small |x / c|, where the scores of a trained model mostly lie, by a polynomial on the FMA pipe;
    // a block that reaches beyond, or past the sequence's end, takes two more MUFU operations a score. true: so it did.
    __device__ __forceinline__ bool cap(float (&s)[kScores]) const {
        const SoftcapPolynomial& polynomial = params_.scores.cap;
        float largest = 0.0f;
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) largest = fmaxf(largest, fabsf(s[i]));
        // What lies past the sequence's end must not decide; so there it is always the second way.
        const bool past_end = !inside(kScores - 1);
        if (__any_sync(~0u, past_end || !(largest <= polynomial.last))) {
            cap_exactly(params_.scores, s);
            return true;
        }
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            s[i] = softcap_exponent(polynomial, softcap_terms(polynomial, s[i]), 0.0f) * static_cast<float>(1 / kLog2E);
        return false;
    }

    // ALiBi: factor * s - slope * |i + off - j|.
    __device__ __forceinline__ void subtract_distances(float (&s)[kScores], float factor) const {
        const auto distance = static_cast<float>(row_ + work_.band.off - first_key_);
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            s[i] = fmaf(
                s[i], factor,
                -slope_ * fabsf(distance + static_cast<float>(Fragment::row_offset(i) - Fragment::column_offset(i))));
    }

    // Rows and columns past the sequence's end: the softmax masks them.
    __device__ __forceinline__ bool inside(int32_t i) const {
        return row_ + Fragment::row_offset(i) < work_.len_q &&
               first_key_ + Fragment::column_offset(i) < work_.band.len_k;
    }

    template <class T>
    __device__ __forceinline__ void add_bias(float (&s)[kScores]) const {
        combine<T>(s, params_.scores.bias, T{}, [](float score, float b) {
            return b == -INFINITY ? b : score + b;  // hides the key, whatever its score
        });
    }

    __device__ __forceinline__ void hide(float (&s)[kScores]) const {
        combine<uint8_t>(s, params_.scores.mask, 1,
                         [](float score, float visible) { return visible == 0.0f ? -INFINITY : score; });
    }

    // With the elements of `matrix` for the warp's head; past the sequence's end there are none.
    template <class T, class Combine>
    __device__ __forceinline__ void combine(float (&s)[kScores], const ScoreMatrix& matrix, T neutral,
                                            Combine combine) const {
        const int32_t block = first_key_ - Fragment::first_column(ptx::lane_id());
        const T* elements = static_cast<const T*>(matrix.data) + work_.batch * matrix.batch_stride +
                            head_ * matrix.head_stride + row_ * matrix.row_stride + block;
        ScoreElements<T, kScores>(elements, matrix, work_.len_q - row_, work_.band.len_k - block, ptx::lane_id())
            .apply(s, neutral, combine);
    }

    const ForwardParams& params_;
    const Work& work_;
    const float slope_;
    const int32_t head_;
    const int32_t row_, first_key_;  // the thread's first row, of the sequence, and its first column
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

// Exponents of a block under ALiBi alone, in place of its q.k, where all its keys are before or all are after the
// warp's queries: |i + off - j| is then linear. slope_log2: ALiBi's, in base 2, and negative after them. distance:
// i + off - j of the thread's first row and column.
template <int32_t kScores>
__device__ __forceinline__ void alibi_exponents(float (&s)[kScores], float scale_log2, float slope_log2,
                                                int32_t distance, const float (&minus_reference)[2]) {
    const float first[2] = {
        fmaf(-slope_log2, static_cast<float>(distance), minus_reference[0]),
        fmaf(-slope_log2, static_cast<float>(distance + Fragment::kRowDistance), minus_reference[1])};
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i)
        s[i] = fmaf(s[i], scale_log2,
                    fmaf(slope_log2, static_cast<float>(Fragment::column_offset(i)), first[Fragment::row(i)]));
}

// Exponents of a block under softcap alone, from its q.k, by the polynomial, a few ahead of the exponentials: it then
// runs on the FMA pipe in the gaps between them, for which they wait for the MUFU.
//
// The polynomial of a group waits for an exponential of two groups before (instruction_order.cuh). That costs an
// instruction a group, and saves a twelfth of the time (docs/performance-log.md, 76).
template <ForwardConfig kConfig>
class CappedExponents {
    static constexpr int32_t kScores = Fragment::size(kConfig.tile.keys);
    static constexpr int32_t kGroup = 4;  // scores

   public:
    __device__ __forceinline__ CappedExponents(const ForwardParams& params, const float (&s)[kScores],
                                               const float (&minus_reference)[2])
        : polynomial_(params.scores.cap), zero_(params.zero), s_(s), minus_reference_(minus_reference) {
        work_out(0, polynomial_.factor);
        work_out(1, polynomial_.factor);
    }

    // The i-th two neighbours, in ascending order; 2^x of the first of them, once it is there.
    __device__ __forceinline__ float2 pair(int32_t i) {
        const int32_t group = 2 * i / kGroup;
        if (2 * i % kGroup == 0 && 0 < group && group + 1 < kScores / kGroup)
            work_out(group + 1, not_before(polynomial_.factor, exponential_, zero_));
        return {t_[2 * i], t_[2 * i + 1]};
    }
    __device__ __forceinline__ void taken(int32_t i, float exponential) {
        if (2 * i % kGroup == kGroup - 2) exponential_ = exponential;
    }

    // All of them anew, where the q.k were.
    __device__ __forceinline__ void store(float (&t)[kScores]) const {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            t[i] = softcap_exponent(polynomial_, softcap_terms(polynomial_, s_[i]), minus_reference_[Fragment::row(i)]);
    }

    // Did this thread ask for one for which the polynomial does not hold?
    __device__ __forceinline__ bool out_of_range() const { return least_w_bits_ < polynomial_.last_w_bits; }

   private:
    __device__ __forceinline__ void work_out(int32_t group, float factor) {
#pragma unroll
        for (int32_t i = kGroup * group; i < kGroup * (group + 1); i += 2) {
            const SoftcapTerms a = softcap_terms(polynomial_, s_[i], factor),
                               b = softcap_terms(polynomial_, s_[i + 1], factor);
            least_w_bits_ = __vimin3_u32(least_w_bits_, __float_as_uint(a.w), __float_as_uint(b.w));
            t_[i] = softcap_exponent(polynomial_, a, minus_reference_[Fragment::row(i)]);
            t_[i + 1] = softcap_exponent(polynomial_, b, minus_reference_[Fragment::row(i)]);
        }
    }

    const SoftcapPolynomial& polynomial_;
    const uint32_t zero_;
    const float (&s_)[kScores];
    const float (&minus_reference_)[2];
    float t_[kScores];   // of the groups up to the one after that which is asked for
    float exponential_;  // of the group before
    // While w < 0 its bits fall as |q.k| grows; from there on, and for NaN, they are smaller still.
    uint32_t least_w_bits_ = ~0u;
};

}  // namespace foveal::sm90
