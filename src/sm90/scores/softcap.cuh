// Softcap: c * tanh(x / c) of a block's scores.
#pragma once

#include <cstdint>

#include "sm90/ptx/warp.cuh"
#include "sm90/scores/options.hpp"
#include "sm90/scores/softcap.hpp"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/instruction_order.cuh"

namespace foveal::sm90 {

// From q.k, whatever it is.
template <int32_t kScores>
__device__ __forceinline__ void cap_exactly(const ScoreOptions& options, float (&s)[kScores]) {
    const float to_exponent = options.cap_argument * static_cast<float>(2 * kLog2E), twice = 2 * options.softcap;
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i)  // tanh(y) = 1 - 2 / (1 + exp(2 y))
        s[i] = options.softcap - twice * __fdividef(1.0f, 1.0f + ptx::ex2(s[i] * to_exponent));
}

// From q.k, whatever it is and however large the cap.
template <int32_t kScores>
__device__ __forceinline__ void cap_widely(const ScoreOptions& options, float (&s)[kScores]) {
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i)
        s[i] = options.softcap * tanhf(s[i] * options.scale * options.inverse_softcap);
}

// From q.k. Small |x / c|, where the scores of a trained model mostly lie, by a polynomial on the FMA pipe; a block
// that reaches beyond takes two more MUFU operations a score. Rows past the sequence's end and keys that none of its
// queries sees must not decide; so a block with such (strays()) always takes the second way. true: so it did.
template <int32_t kScores, class Strays>
__device__ __forceinline__ bool cap(const ScoreOptions& options, float (&s)[kScores], Strays strays) {
    const SoftcapPolynomial& polynomial = options.cap;
    float largest = 0.0f;
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i) largest = fmaxf(largest, fabsf(s[i]));
    const bool has_strays = strays();
    if (__any_sync(~0u, has_strays || !(largest <= polynomial.last))) {
        cap_exactly(options, s);
        return true;
    }
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i)
        s[i] = softcap_exponent(polynomial, softcap_terms(polynomial, s[i]), 0.0f) * static_cast<float>(1 / kLog2E);
    return false;
}

// Exponents of a block under softcap alone, from its q.k, by the polynomial, a few ahead of the exponentials: it then
// runs on the FMA pipe in the gaps between them, for which they wait for the MUFU.
//
// The polynomial of a few neighbours waits for an exponential of the last but one few (instruction_order.cuh). That
// costs an instruction each time, and saves a twelfth of the time (docs/performance-log, 76).
template <int32_t kKeys>
class CappedExponents {
    static constexpr int32_t kScores = Fragment::size(kKeys);
    static constexpr int32_t kFew = 4;  // scores that are worked out together

   public:
    // zero: ForwardParams::zero.
    __device__ __forceinline__ CappedExponents(const SoftcapPolynomial& polynomial, uint32_t zero,
                                               const float (&s)[kScores], const float (&minus_reference)[2])
        : polynomial_(polynomial), zero_(zero), s_(s), minus_reference_(minus_reference) {
        work_out(0, polynomial_.factor);
        work_out(1, polynomial_.factor);
    }

    // The i-th two neighbours, in ascending order; 2^x of the first of them, once it is there.
    __device__ __forceinline__ float2 pair(int32_t i) {
        const int32_t few = 2 * i / kFew;
        if (2 * i % kFew == 0 && 0 < few && few + 1 < kScores / kFew)
            work_out(few + 1, not_before(polynomial_.factor, exponential_, zero_));
        return {t_[2 * i], t_[2 * i + 1]};
    }
    __device__ __forceinline__ void taken(int32_t i, float exponential) {
        if (2 * i % kFew == kFew - 2) exponential_ = exponential;
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
    __device__ __forceinline__ void work_out(int32_t few, float factor) {
#pragma unroll
        for (int32_t i = kFew * few; i < kFew * (few + 1); i += 2) {
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
    float t_[kScores];   // up to the few after those which are asked for
    float exponential_;  // of the few before
    // While w < 0 its bits fall as |q.k| grows; from there on, and for NaN, they are smaller still.
    uint32_t least_w_bits_ = ~0u;
};

}  // namespace foveal::sm90
