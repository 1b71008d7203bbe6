// The softmax of one warpgroup's 64 rows over the K/V blocks it visits, one block at a time.
//
// Every row has a reference, set to its maximum when the first block is seen; the exponent of a score is its distance
// from the reference, less kShift. The reference is not followed: as long as P stays below a limit, no later score can
// have come near the end of the format's range, and neither the maximum nor a rescaling of O is needed. The rare row
// that leaves this range is caught by one comparison and one vote a block and set anew, O included, before its P is
// used: rescale(). So every input is handled by the same code in one pass, and no block pays for a maximum.
//
// The sum that normalises O is the sum of P as rounded for the second product: numerator and denominator then carry the
// same rounding, which matters as soon as the largest P is not exactly 1. Either the product sums (columns of ones
// beside V), or the threads do. The log-sum-exp needs the unrounded sum.
//
// Exponents are in base 2: scale * log2(e) * q.k - reference - kShift. (With options scores.cuh has made the scores,
// and only log2(e) is left.)
#pragma once

#include <cstdint>

#include "sm90/forward/softmax_range.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/scores/base_2.hpp"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/row.cuh"

namespace foveal::sm90 {

// What a row is normalised by, when it has ended.
struct RowTotals {
    float minus_reference[2];
    float sum[2];        // of the rounded P; this thread's columns, unless the product sums
    float exact_sum[2];  // of the unrounded P, this thread's columns; only with a log-sum-exp

    // 1 / denominator of the whole row, 0 for a row that saw no key. keys: the sum of its P. sink_log2: a sink's logit
    // in base 2, -inf: none.
    __device__ __forceinline__ float normaliser(float keys, int32_t r, float sink_log2) const {
        const float total = keys + ptx::ex2(sink_log2 + minus_reference[r]);
        return keys == 0.0f ? 0.0f : __fdividef(1.0f, total);
    }

    // Natural logarithm of the row's sum of exponentials, the sink's (natural units, -inf: none) included; -inf for a
    // row that saw no key. kWide: as Softmax has it.
    template <bool kWide>
    __device__ __forceinline__ float log_sum_exp(int32_t r, float sink) const {
        constexpr float kLn2 = 0.693147180559945f;
        const float keys_log2 = __log2f(row_sum(exact_sum[r])) - minus_reference[r];
        const float keys = kWide ? from_base_2(keys_log2) : kLn2 * keys_log2;
        const float larger = fmaxf(keys, sink), smaller = fminf(keys, sink);
        return smaller == -INFINITY ? larger : larger + log1pf(__expf(smaller - larger));
    }
};

// The two rows of one thread (tile/fragment.hpp); arrays over r are indexed by row. kKeys: keys a block. kOutColumns:
// columns of the output, beside which the product may sum P. kWide: options may put a score anywhere in fp32's range.
template <DType kType, int32_t kKeys, int32_t kOutColumns, bool kSumsInProduct, bool kLse, bool kWide>
struct Softmax {
    using Format = sm90::Format<kType>;
    using Range = SoftmaxRange<kType>;
    static constexpr int32_t kScores = Fragment::size(kKeys);
    static constexpr int32_t kKsteps = kKeys / Format::kKstepColumns;
    static constexpr int32_t kOut = Fragment::size(kOutColumns + (kSumsInProduct ? Fragment::kColumns : 0));
    // Scores beyond it ("far") are spaced more widely than an exponent may be off. Their reference is exactly one of
    // them, without kShift, which would be lost in it; and they are scaled before it is subtracted, since an fma would
    // leave the rounding of the reference as an exponent.
    static constexpr float kFar = 0x1p22f;
    static constexpr float kRise = 0x1p10f;  // beyond it 2^-x is 0, and x still as exact as an exponent has to be
    static constexpr uint32_t kMinusZeroBits = 0x80000000;
    // What is added to a pair of P, so that the carry sets the sign of one that is beyond its limit (kMargin); or, for
    // a thread with a row that has seen no key yet, of any P (kSigns).
    static constexpr uint32_t kSigns = 0x80008000, kMargin = kSigns - 0x00010001 * (Range::kLimitBits + 1);

    float minus_reference[2];  // -(reference + kShift); -0 while the row has seen no key, and only then
    float limit[2];      // where the threads sum: of a row's sum; -1, which any sum exceeds, while it has seen no key
    uint32_t margin;     // where the product sums: kMargin or kSigns
    float sum[2];        // where the threads sum: of the rounded P in this thread's columns
    float exact_sum[2];  // only if kLse: of the unrounded P in this thread's columns
    float scale;         // what shift() multiplies by; 1 where a row of the warp is far
    uint32_t restarts;   // only if kWide, of one block: bit r where row r begins anew with it (shift_wide())

    // A new tile: the references from its first block's scores, which are still to be multiplied by scale_log2.
    // rows_left: of the sequence, from the thread's first on. Rows past its end hold anything, and have no say in what
    // the warp does.
    __device__ __forceinline__ void start(const float (&s)[kScores], float scale_log2, int32_t rows_left) {
        bool far = false;
        margin = kMargin;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = scaled(row_max(thread_max(s, r)), scale_log2);
            const bool unseen = top == -INFINITY, is_far = fabsf(top) > kFar && !unseen;
            minus_reference[r] = unseen ? -0.0f : never_minus_zero(-top - (is_far ? 0.0f : Range::kShift));
            limit[r] = unseen ? -1.0f : is_far ? Range::kFarSumLimit : Range::kSumLimit;
            sum[r] = 0.0f;
            exact_sum[r] = 0.0f;
            far |= is_far && Fragment::kRowDistance * r < rows_left;
            if (unseen) margin = kSigns;
        }
        scale = __any_sync(~0u, far) ? 1.0f : scale_log2;
    }

    // References, before shift(), of rows that have seen no key: of a tile's second block, since under a window some
    // see none of the first (schedule.hpp, blocks_of_rows()). rescale() would do all of the block twice; it still sees
    // to rows that are far or see no key here either. Not where the warp is far.
    __device__ __forceinline__ void start_unseen(const float (&s)[kScores]) {
        if (!__any_sync(~0u, is_unseen(0) || is_unseen(1))) return;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = row_max(thread_max(s, r)) * scale;
            if (!is_unseen(r) || !(fabsf(top) <= kFar)) continue;
            minus_reference[r] = never_minus_zero(-top - Range::kShift);
            limit[r] = Range::kSumLimit;
        }
        margin = is_unseen(0) || is_unseen(1) ? kSigns : kMargin;
    }

    // Are the warp's scores to be scaled before shift()?
    __device__ __forceinline__ bool far(float scale_log2) const { return scale != scale_log2; }
    static __device__ __forceinline__ void scale_scores(float (&s)[kScores], float scale_log2) {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] = scaled(s[i], scale_log2);
    }

    // shift() where a row of the warp is far or is_wide(). A row whose scores rise from far below to here begins anew:
    // what it has seen counts nothing beside them; and added to such a reference, they would all be the same number.
    // (A mask of finite numbers, such as -1e9, that hides the first blocks.) So does one that has seen no key, unless
    // it is far: rescale() sees to that.
    __device__ __forceinline__ void shift_wide(float (&s)[kScores], float scale_log2) {
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = scaled(row_max(thread_max(s, r)), scale_log2);
            if (is_unseen(r) ? !(fabsf(top) <= kFar) : !(top + minus_reference[r] > kRise)) continue;
            const bool is_far = fabsf(top) > kFar;
            minus_reference[r] = never_minus_zero(-top - (is_far ? 0.0f : Range::kShift));
            limit[r] = is_far ? Range::kFarSumLimit : Range::kSumLimit;
            restarts |= 1u << r;
        }
        // As shift() does but where a row is far, or may have scores that are.
        const bool scale_first[2] = {is_unseen(0) || fabsf(minus_reference[0]) > kFar,
                                     is_unseen(1) || fabsf(minus_reference[1]) > kFar};
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) {
            const int32_t r = Fragment::row(i);
            s[i] = scale_first[r] ? scaled(s[i], scale_log2) + minus_reference[r]
                                  : fmaf(s[i], scale_log2, minus_reference[r]);
        }
    }

    // Does a row of the warp rise far above its reference here, or might an exponent be lost to one that has seen no
    // key? Not where the warp is far.
    __device__ __forceinline__ bool is_wide(const float (&s)[kScores]) const {
        bool wide = false;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r)
            wide |= is_unseen(r) || fmaf(thread_max(s, r), scale, minus_reference[r]) > kRise;
        return __any_sync(~0u, wide);
    }
    // Might one rise so, or has one seen no key? Without a reference its exponents would be whole scores in base 2,
    // which far from 0 are rounded to coarser steps than in natural units. Bits in order: 0 to inf and NaN, then -0.
    __device__ __forceinline__ bool is_low() const {
        const uint32_t first = __float_as_uint(kRise) + 1;
        bool low = false;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) low |= __float_as_uint(minus_reference[r]) - first <= kMinusZeroBits - first;
        return __any_sync(~0u, low);
    }

    // Scores to exponents, in place.
    __device__ __forceinline__ void shift(float (&s)[kScores]) const {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] = fmaf(s[i], scale, minus_reference[Fragment::row(i)]);
    }

    // P of ksteps [kBegin, kEnd), rounded, as A fragments of the second product. Exponents that are still to be
    // worked out (CappedExponents, scores/softcap.cuh) are asked for in pairs of neighbours, and told what came of
    // them.
    template <int32_t kBegin, int32_t kEnd>
    __device__ __forceinline__ void probabilities(const float (&t)[kScores], uint32_t (&p)[kKsteps][4]) {
        struct {
            const float (&t)[kScores];
            __device__ __forceinline__ float2 pair(int32_t i) const { return {t[2 * i], t[2 * i + 1]}; }
            __device__ __forceinline__ void taken(int32_t, float) const {}
        } exponents{t};
        probabilities_of<kBegin, kEnd>(exponents, p);
    }
    template <int32_t kBegin, int32_t kEnd, class Exponents>
    __device__ __forceinline__ void probabilities_of(Exponents& exponents, uint32_t (&p)[kKsteps][4]) {
#pragma unroll
        for (int32_t c = kBegin; c < kEnd; ++c)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) {
                const float2 t = exponents.pair(4 * c + i);
                const float a = ptx::ex2(t.x), b = ptx::ex2(t.y);
                exponents.taken(4 * c + i, a);
                if constexpr (kLse) exact_sum[Fragment::row_of_pair(i)] += a + b;
                p[c][i] = Format::pack(a, b);
            }
    }

    // The same in two steps: exponentials of ksteps [kBegin, kBegin + kCount), and P from them. The exact sums grow in
    // the same order, since rescale() takes the way above, and a row must not see whether it was taken.
    template <int32_t kBegin, int32_t kCount, int32_t kSize>
    __device__ __forceinline__ void exponentials(const float (&t)[kScores], float (&e)[kSize]) {
#pragma unroll
        for (int32_t i = 0; i < 4 * kCount; ++i) {
            e[2 * i] = ptx::ex2(t[8 * kBegin + 2 * i]);
            e[2 * i + 1] = ptx::ex2(t[8 * kBegin + 2 * i + 1]);
            if constexpr (kLse) exact_sum[Fragment::row_of_pair(i)] += e[2 * i] + e[2 * i + 1];
        }
    }
    template <int32_t kBegin, int32_t kCount, int32_t kSize>
    static __device__ __forceinline__ void round(const float (&e)[kSize], uint32_t (&p)[kKsteps][4]) {
#pragma unroll
        for (int32_t i = 0; i < 4 * kCount; ++i) p[kBegin + i / 4][i % 4] = Format::pack(e[2 * i], e[2 * i + 1]);
    }

    // The totals of the rows as they stand. With sums in the product they are o's, and those of P V up to here.
    __device__ __forceinline__ RowTotals totals() const {
        return {{minus_reference[0], minus_reference[1]}, {sum[0], sum[1]}, {exact_sum[0], exact_sum[1]}};
    }
    // Back to them: the last block's P has been added and is not what it should be.
    __device__ __forceinline__ void take_back(const RowTotals& before) {
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            sum[r] = before.sum[r];
            exact_sum[r] = before.exact_sum[r];
        }
    }
    static __device__ __forceinline__ float product_sum(const float (&o)[kOut], int32_t r) {
        // With Fragment::index(r, kOutColumns), which is the same number, nvcc 13.0 allots other registers (d 64,
        // softcap).
        constexpr int32_t kSums = Fragment::size(kOutColumns);
        return o[kSums + 2 * r];
    }

    // Adds a tile's first block.
    __device__ __forceinline__ void add_first(const uint32_t (&p)[kKsteps][4]) {
        if constexpr (!kSumsInProduct) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) sum[r] = block_sum(p, r);
        }
    }

    // Adds the block's P to the sums; true if a row of this thread has left its range. o: P V of the blocks before.
    // 16-bit numbers that are not negative are in the order of their bits.
    __device__ __forceinline__ bool add(const uint32_t (&p)[kKsteps][4], const float (&o)[kOut]) {
        const bool restarted = kWide && restarts != 0;
        if constexpr (kSumsInProduct) {
            uint32_t largest = p[0][0];
#pragma unroll
            for (int32_t c = 0; c < kKsteps; ++c) {
                largest = __vimax3_u16x2(largest, p[c][1], p[c][2]);
                largest = __vimax3_u16x2(largest, p[c][3], p[min_i32(c + 1, kKsteps - 1)][0]);
            }
            return restarted || ((largest + margin) & kSigns) != 0 ||
                   (Range::kLimitsWholeRow &&
                    (product_sum(o, 0) > Range::kSumLimit || product_sum(o, 1) > Range::kSumLimit));
        }
        bool out_of_range = restarted;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float block = block_sum(p, r);
            sum[r] += block;
            out_of_range |= (Range::kLimitsWholeRow ? sum[r] : block) > limit[r];
        }
        return out_of_range;
    }

    // New references for the rows of this warp that have left their range: this block's maximum, or the sum so far, as
    // if it were a key, where that is more. O and the sums follow, and t and P of the block are computed anew. before:
    // the totals without this block; rows_left: as in start().
    __device__ __forceinline__ void rescale(float (&t)[kScores], uint32_t (&p)[kKsteps][4], float (&o)[kOut],
                                            const RowTotals& before, int32_t rows_left) {
        float factor[2];
        bool still_unseen = false;
        const uint32_t quad = lanes_of_row(threadIdx.x % 32);
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            // A row does not move for the sake of another: its result must not depend on what that one holds.
            const bool mine = left_range(p, o, r) && Fragment::kRowDistance * r < rows_left;
            const bool needed = (__ballot_sync(~0u, mine) & quad) != 0;
            const float top = row_max(thread_max(t, r));
            const bool is_far = fabsf(minus_reference[r] - top) > kFar;
            const bool unseen = is_unseen(r);
            float distance = top + (is_far ? 0.0f : Range::kShift);
            if constexpr (kSumsInProduct)
                if (!is_far && product_sum(o, r) > Range::kSumLimit)
                    distance = fmaxf(distance, __log2f(product_sum(o, r)) + Range::kShift);
            const bool moves = needed && distance > -INFINITY && (unseen || distance > 0);
            const float step = moves ? distance : 0.0f;
            factor[r] = moves && !unseen ? ptx::ex2(-step) : 1.0f;
            if (kWide && (restarts >> r & 1) != 0) factor[r] = 0.0f;
            minus_reference[r] = (moves ? 0.0f : -0.0f) + minus_reference[r] - step;  // -0 + x is x, 0 + -0 is 0
            if (moves) limit[r] = is_far ? Range::kFarSumLimit : Range::kSumLimit;
            still_unseen |= unseen && !moves;
            if (__any_sync(~0u, moves && is_far)) scale = 1.0f;
            sum[r] = before.sum[r] * factor[r];
            exact_sum[r] = before.exact_sum[r] * factor[r];
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (Fragment::row(i) == r) t[i] -= step;
        }
        margin = still_unseen ? kSigns : kMargin;
#pragma unroll
        for (int32_t i = 0; i < kOut; ++i) o[i] *= factor[Fragment::row(i)];
        probabilities<0, kKsteps>(t, p);
        if constexpr (!kSumsInProduct) {
#pragma unroll
            for (int32_t r = 0; r < 2; ++r) sum[r] += block_sum(p, r);
        }
    }

    // RowTotals::normaliser() of the whole row. o: of the whole row.
    static __device__ __forceinline__ float normaliser(const RowTotals& row, const float (&o)[kOut], int32_t r,
                                                       float sink_log2) {
        return row.normaliser(kSumsInProduct ? product_sum(o, r) : row_sum(row.sum[r]), r, sink_log2);
    }

   private:
    static __device__ __forceinline__ float scaled(float x, float scale_log2) {
        return kWide ? to_base_2(x) : __fmul_rn(x, scale_log2);
    }

    // Something less kShift, which is -0 only where kShift is 0.
    static __device__ __forceinline__ float never_minus_zero(float x) { return Range::kShift == 0.0f ? x + 0.0f : x; }

    __device__ __forceinline__ bool is_unseen(int32_t r) const {
        return __float_as_uint(minus_reference[r]) == kMinusZeroBits;
    }

    // What add() found, of one row.
    __device__ __forceinline__ bool left_range(const uint32_t (&p)[kKsteps][4], const float (&o)[kOut],
                                               int32_t r) const {
        if constexpr (!kSumsInProduct) return (Range::kLimitsWholeRow ? sum[r] : block_sum(p, r)) > limit[r];
        uint32_t largest = 0;
#pragma unroll
        for (int32_t c = 0; c < kKsteps; ++c) largest = __vimax3_u16x2(largest, p[c][r], p[c][r + Fragment::kRows]);
        return ((largest + kMargin) & kSigns) != 0 ||
               (Range::kLimitsWholeRow && product_sum(o, r) > Range::kSumLimit) || is_unseen(r);
    }

    // P is added packed, once, before fp32: a key with the one half a block away, because keys that dominate a row
    // together are rarely that far apart, and then nothing is lost. Packed twice would save 24 instructions a block,
    // but where few keys dominate it costs up to 1.3 times the error of the same-precision reference; not packed at
    // all, 48 instructions and an eighth of the speed (docs/performance-log, 8).
    static __device__ __forceinline__ float block_sum(const uint32_t (&p)[kKsteps][4], int32_t r) {
        constexpr int32_t kHalf = kKsteps / 2;
        float2 total{0.0f, 0.0f};
#pragma unroll
        for (int32_t c = 0; c < kHalf; ++c)
#pragma unroll
            for (int32_t i = 0; i < Fragment::kPairsOfOperand; ++i) {
                if (Fragment::row_of_pair(i) != r) continue;
                const float2 sums = Format::unpack(Format::add(p[c][i], p[c + kHalf][i]));
                total.x += sums.x;
                total.y += sums.y;
            }
        return total.x + total.y;
    }
};

}  // namespace foveal::sm90
