// The softmax of one warpgroup's 64 rows, whose P is rounded to e4m3 for the second product.
//
// As in the 16-bit kernel (forward/softmax.cuh) a row has a reference, the maximum of the first block that it sees, and
// the reference stays until a score outgrows it. But e4m3 ends at 448, and below 2^-6 it loses digits: so the reference
// is 2^kTop, high enough for what is small beside it and low enough to leave some room. A P that would be rounded to
// 448 or more is found by its byte, one addition and half a logical instruction for four of them, before P is used;
// then the block's maximum becomes the reference, and O follows by a power of two, which is exact.
//
// O is divided by the sum of the rounded P, which rows of ones below V make the product add up: numerator and
// denominator carry the same rounding, and where one key outweighs the others it cancels. The log-sum-exp needs the
// unrounded sum.
#pragma once

#include <cstdint>
#include <limits>

#include "sm90/forward/e4m3/tiles.hpp"
#include "sm90/forward/softmax.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/ptx/wgmma_e4m3.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/row.cuh"

namespace foveal::sm90 {

// The two rows of one thread; arrays over r are indexed by row.
template <int32_t kAccumulators, bool kLse>
struct E4m3Softmax {
    static constexpr int32_t kScores = Fragment::size(kE4m3Keys);
    static constexpr int32_t kKsteps = kE4m3Keys / kE4m3Kstep;
    // Of the reference, in base 2 (performance-log, e4m3 1): how far it is from 448 and from what is lost.
    
#ifndef E4_TOP
#define E4_TOP 7.0f
#endif
#ifndef E4_POLY
#define E4_POLY 0
#define E4_OF 8
#endif
    static constexpr float kTop = E4_TOP;
    // Beyond it ("far") an fma with the reference would leave the reference's own rounding as an exponent, so there
    // scores are scaled, and rounded, before it is subtracted.
    static constexpr float kFar = 0x1p20f;
    // An exponent beyond it is a P that e4m3 has no number for.
    static constexpr float kEnd = 8.8f;
    static constexpr int32_t kEndBits = 0x410CCCCD;
    static constexpr uint32_t kMinusZeroBits = 0x80000000;
    static constexpr int32_t kNoLimit = std::numeric_limits<int32_t>::min();

    float minus_reference[2];  // -(reference - kTop); -0 while the row has seen no key, and only then
    float exact_sum[2];        // only if kLse: of the unrounded P in this thread's columns
    float factor[2];           // of the block whose references moved: what O is multiplied by
    float scale;               // what shift() multiplies by; 1 where scores are scaled before
    int32_t limit;             // kEnd's bits, which order numbers from 0 on; kNoLimit where a row has seen no key

    static __device__ __forceinline__ void scale_scores(float (&s)[kScores], float factor) {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] *= factor;
    }

    // A new tile: the references from its first block's scores, which are still to be multiplied by `factor`. true: a
    // row of the warp is far. rows_left: of the sequence, from the thread's first on; rows past its end have no say.
    __device__ __forceinline__ bool start(const float (&s)[kScores], float factor, int32_t rows_left) {
        bool far = false;
        limit = kEndBits;
        scale = factor;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = row_max(thread_max(s, r)) * factor;
            set_reference(r, top);
            exact_sum[r] = 0.0f;
            far |= fabsf(top) > kFar && top != -INFINITY && Fragment::kRowDistance * r < rows_left;
        }
        return __any_sync(~0u, far);
    }

    // References, before shift(), of rows that have seen no key (forward/softmax.cuh).
    __device__ __forceinline__ void start_unseen(const float (&s)[kScores]) {
        if (!__any_sync(~0u, is_unseen(0) || is_unseen(1))) return;
        limit = kEndBits;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = row_max(thread_max(s, r)) * scale;
            if (is_unseen(r)) set_reference(r, top);
        }
    }

    // Scores to exponents, in place.
    __device__ __forceinline__ void shift(float (&s)[kScores]) const {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] = fmaf(s[i], scale, minus_reference[Fragment::row(i)]);
    }

    static __device__ __forceinline__ float by_polynomial(float t) {
        t = fmaxf(t, -126.0f);
        const float shifted = t + 12582912.0f;
        const float f = t - (shifted - 12582912.0f);
        float p = fmaf(fmaf(0.0555041f, f, 0.2402265f), f, 0.6931472f);
        p = fmaf(p, f, 1.0f);
        return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
    }

    // P of ksteps [kBegin, kEnd), as A operands of the second product (key_order.hpp).
    template <int32_t kBegin, int32_t kEnd>
    __device__ __forceinline__ void probabilities(const float (&t)[kScores], uint32_t (&p)[kKsteps][4]) {
#pragma unroll
        for (int32_t c = kBegin; c < kEnd; ++c)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) {
                float e[4];
#pragma unroll
                for (int32_t j = 0; j < 4; ++j)
                    e[j] = ((c * 4 + i) * 4 + j) % E4_OF < E4_POLY ? by_polynomial(t[score_of_operand(c, i, j)])
                                                                  : ptx::ex2(t[score_of_operand(c, i, j)]);
                if constexpr (kLse) exact_sum[i % 2] += (e[0] + e[1]) + (e[2] + e[3]);
                p[c][i] = ptx::pack_e4m3(e[0], e[1], e[2], e[3]);
            }
    }

    // Does a row of this thread leave its range? In exponents that are below 0 integers have another order, but there
    // any of them is below the limit.
    __device__ __forceinline__ bool leaves_range(const float (&t)[kScores]) const {
        int32_t most[4] = {kNoLimit, kNoLimit, kNoLimit, kNoLimit};
#pragma unroll
        for (int32_t i = 0; i < kScores; i += 2) {
            int32_t& largest = most[i / 2 % 4];
            largest = __vimax3_s32(largest, __float_as_int(t[i]), __float_as_int(t[i + 1]));
        }
        return max(__vimax3_s32(most[0], most[1], most[2]), most[3]) > limit;
    }

    // New references for the rows of this warp that leave their range: exponents and sums follow, and O behind the
    // products that are under way. A row does not move for the sake of another: its result must not depend on what that
    // one holds. rows_left: as in start().
    __device__ __forceinline__ void move(float (&t)[kScores], int32_t rows_left) {
        limit = kEndBits;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = row_max(thread_max(t, r));
            const bool unseen = is_unseen(r);
            const bool moves = top > (unseen ? -INFINITY : kEnd) && Fragment::kRowDistance * r < rows_left;
            const float step = moves ? ceilf(top) - kTop : 0.0f;
            factor[r] = moves && !unseen ? ptx::ex2(-step) : 1.0f;
            minus_reference[r] = moves ? never_minus_zero(minus_reference[r] - step) : minus_reference[r];
            if (unseen && !moves) limit = kNoLimit;
            exact_sum[r] *= factor[r];
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (Fragment::row(i) == r) t[i] -= step;
        }
    }
    __device__ __forceinline__ void rescale(float (&o)[kAccumulators]) const {
#pragma unroll
        for (int32_t i = 0; i < kAccumulators; ++i) o[i] *= factor[Fragment::row(i)];
    }

    __device__ __forceinline__ RowTotals totals() const {
        return {{minus_reference[0], minus_reference[1]}, {0.0f, 0.0f}, {exact_sum[0], exact_sum[1]}};
    }

   private:
    static __device__ __forceinline__ float never_minus_zero(float x) { return x + 0.0f; }

    __device__ __forceinline__ void set_reference(int32_t r, float top) {
        const bool unseen = top == -INFINITY;
        minus_reference[r] = unseen ? -0.0f : never_minus_zero(kTop - top);
        if (unseen) limit = kNoLimit;
    }

    __device__ __forceinline__ bool is_unseen(int32_t r) const {
        return __float_as_uint(minus_reference[r]) == kMinusZeroBits;
    }
};

}  // namespace foveal::sm90
