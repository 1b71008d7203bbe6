// The softmax of one warpgroup's 64 rows over the K/V blocks it visits, one block at a time.
//
// Every row has a reference, set to its maximum when the first block is seen; the exponent of a score is its distance
// from the reference, less kShift. The reference is not followed: as long as the row's sum stays below kLimit, no
// later score can have come near the end of the format's range, and neither the maximum nor a rescaling of O is needed.
// The rare row that leaves this range is caught by one comparison a block and set anew, O included, before its P is
// used: rescale(). So every input is handled by the same code in one pass, and no block pays for a maximum.
//
// The sum that normalises O is the sum of P as rounded for the second product: numerator and denominator then carry the
// same rounding, which matters as soon as the largest P is not exactly 1. The log-sum-exp needs the unrounded sum.
//
// Scores are held in base 2: t = scale * log2(e) * q.k - reference - kShift. (With options scores.cuh has made
// them, and only log2(e) is left.)
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mask.hpp"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
#include "tiles.hpp"

namespace foveal::sm90 {

template <DType kType>
struct Rounded;

// bf16 has the exponents of fp32. A row may grow by 53 bits (37 nats) before it is corrected, its sum stays below 1, so
// that O is finite even where V is at the end of bf16's range, and the 70 bits between 2^-56 and 2^-126 hold every key
// that counts. (24: 1.13 of FA3's time in place of 0.92 at logits of standard deviation 10; docs/performance-log.md.)
template <>
struct Rounded<DType::bf16> {
    using Pair = __nv_bfloat162;
    static constexpr float kShift = 56.0f;
    static constexpr float kLimit = 0.125f;
    static constexpr float kFarLimit = 0x1p20f;
    static constexpr bool kLimitsWholeRow = true;
    static __device__ __forceinline__ Pair pack(float a, float b) { return __floats2bfloat162_rn(a, b); }
    // A bf16 is the upper half of an fp32. (__bfloat1622float2 takes two more instructions, nvcc 13.0.)
    static __device__ __forceinline__ float2 unpack(Pair x) {
        const uint32_t bits = reinterpret_cast<const uint32_t&>(x);
        return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u)};
    }
};

// f16 ends at 65504: the largest P starts at 1, as precise as f16 can be, and the sum of a block must not pass 2^13.
// O cannot overflow fp32, so the sum of the whole row is free.
template <>
struct Rounded<DType::f16> {
    using Pair = __half2;
    static constexpr float kShift = 0.0f;
    static constexpr float kLimit = 8192.0f;
    static constexpr float kFarLimit = kLimit;
    static constexpr bool kLimitsWholeRow = false;
    static __device__ __forceinline__ Pair pack(float a, float b) { return __floats2half2_rn(a, b); }
    static __device__ __forceinline__ float2 unpack(Pair x) { return __half22float2(x); }
};

// Sums over the four lanes that share a row, and their maximum.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// The rows of one thread: two, 8 apart. kKeys: keys a block. Arrays over r are indexed by row.
template <ForwardConfig kConfig>
struct Softmax {
    static constexpr int32_t kKeys = kConfig.tile.keys;
    static constexpr bool kLse = kConfig.has_lse();
    using Format = Rounded<kConfig.dtype>;
    using Pair = typename Format::Pair;
    static constexpr int32_t kScores = kKeys / 2;   // of a thread in a block
    static constexpr int32_t kChunks = kKeys / 16;  // k of one wgmma is 16 keys
    static constexpr float kLn2 = 0.693147180559945f;
    // Scores beyond it ("far") are spaced more widely than an exponent may be off. Their reference is exactly one of
    // them, without kShift, which would be lost in it; and they are scaled before it is subtracted, since an fma would
    // leave the rounding of the reference as an exponent.
    static constexpr float kFar = 0x1p22f;

    float minus_reference[2];  // -(reference + kShift); 0 while the row has seen no key
    float limit[2];            // -1 while the row has seen no key: any sum passes it
    float sum[2];              // of the rounded P, this thread's columns
    float exact_sum[2];        // of the unrounded P; only if kLse
    float scale;               // what shift() multiplies by; 1 where a row of the warp is far

    // Scores of keys that a row does not see become -inf.
    static __device__ __forceinline__ void mask(float (&s)[kScores], Band band, int32_t row, int32_t first_key,
                                                int32_t lane) {
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const uint32_t visible = visible_positions(band, row + 8 * r, first_key, lane);
#pragma unroll
            for (int32_t j = 0; j < kKeys / 8; ++j)
#pragma unroll
                for (int32_t e = 0; e < 2; ++e)
                    if (!((visible >> (2 * j + e)) & 1)) s[4 * j + 2 * r + e] = -INFINITY;
        }
    }

    // A new tile: the references from its first block's scores, which are still to be multiplied by scale_log2.
    __device__ __forceinline__ void start(const float (&s)[kScores], float scale_log2) {
        bool far = false;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float top = row_max(thread_max(s, r)) * scale_log2;
            const bool unseen = top == -INFINITY, is_far = fabsf(top) > kFar && !unseen;
            minus_reference[r] = unseen ? 0.0f : -top - (is_far ? 0.0f : Format::kShift);
            limit[r] = unseen ? -1.0f : is_far ? Format::kFarLimit : Format::kLimit;
            sum[r] = 0.0f;
            exact_sum[r] = 0.0f;
            far |= is_far;
        }
        scale = __any_sync(~0u, far) ? 1.0f : scale_log2;
    }

    // Are the warp's scores to be scaled before shift()?
    __device__ __forceinline__ bool far(float scale_log2) const { return scale != scale_log2; }
    static __device__ __forceinline__ void scale_scores(float (&s)[kScores], float scale_log2) {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] = __fmul_rn(s[i], scale_log2);
    }

    // Scores to exponents, in place.
    __device__ __forceinline__ void shift(float (&s)[kScores]) const {
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i) s[i] = fmaf(s[i], scale, minus_reference[(i >> 1) & 1]);
    }

    // P of 16-key chunks [kBegin, kEnd), rounded, as A fragments of the second product.
    template <int32_t kBegin, int32_t kEnd>
    __device__ __forceinline__ void probabilities(const float (&t)[kScores], uint32_t (&p)[kChunks][4]) {
#pragma unroll
        for (int32_t c = kBegin; c < kEnd; ++c)
#pragma unroll
            for (int32_t i = 0; i < 4; ++i) {
                const float a = ptx::ex2(t[8 * c + 2 * i]), b = ptx::ex2(t[8 * c + 2 * i + 1]);
                if constexpr (kLse) exact_sum[i & 1] += a + b;
                const Pair pair = Format::pack(a, b);
                p[c][i] = reinterpret_cast<const uint32_t&>(pair);
            }
    }

    // The sums before a block, from which rescale() starts again.
    struct Sums {
        float rounded[2];
        float exact[2];
    };
    __device__ __forceinline__ Sums sums() const { return {{sum[0], sum[1]}, {exact_sum[0], exact_sum[1]}}; }

    // Adds the block's P to the sums; true if a row of this thread has left its range.
    __device__ __forceinline__ bool add(const uint32_t (&p)[kChunks][4]) {
        bool out_of_range = false;
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const float block = block_sum(p, r);
            sum[r] += block;
            out_of_range |= (Format::kLimitsWholeRow ? sum[r] : block) > limit[r];
        }
        return out_of_range;
    }

    // New references, from this block's maxima, for the rows of this warp that have left their range; O and the sums
    // follow, and t and P of the block are computed anew. kOut: accumulators of O a thread.
    template <int32_t kOut>
    __device__ __forceinline__ void rescale(float (&t)[kScores], uint32_t (&p)[kChunks][4], float (&o)[kOut],
                                            const Sums& before) {
        float factor[2];
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) {
            const bool mine = (Format::kLimitsWholeRow ? sum[r] : block_sum(p, r)) > limit[r];
            const uint32_t quad = 0xfu << (threadIdx.x % 32 & ~3u);
            const float top = row_max(thread_max(t, r));
            const bool is_far = fabsf(minus_reference[r] - top) > kFar;
            const float distance = top + (is_far ? 0.0f : Format::kShift);
            const bool needed = (__ballot_sync(~0u, mine) & quad) != 0;
            const bool unseen = limit[r] < 0;
            const bool moves = needed && top != -INFINITY && (unseen || distance > 0);
            const float step = moves ? distance : 0.0f;
            factor[r] = moves && !unseen ? ptx::ex2(-step) : 1.0f;
            minus_reference[r] -= step;
            if (moves) limit[r] = is_far ? Format::kFarLimit : Format::kLimit;
            if (__any_sync(~0u, moves && is_far)) scale = 1.0f;
            sum[r] = before.rounded[r] * factor[r];
            exact_sum[r] = before.exact[r] * factor[r];
#pragma unroll
            for (int32_t i = 0; i < kScores; ++i)
                if (((i >> 1) & 1) == r) t[i] -= step;
        }
#pragma unroll
        for (int32_t i = 0; i < kOut; ++i) o[i] *= factor[(i >> 1) & 1];
        probabilities<0, kChunks>(t, p);
#pragma unroll
        for (int32_t r = 0; r < 2; ++r) sum[r] += block_sum(p, r);
    }

    // 1 / denominator of the whole row, 0 for a row that saw no key. sink_log2: a sink's logit in base 2, -inf: none.
    __device__ __forceinline__ float normaliser(int32_t r, float sink_log2) const {
        const float total = row_sum(sum[r]) + ptx::ex2(sink_log2 + minus_reference[r]);
        return total == 0.0f ? 0.0f : __fdividef(1.0f, total);
    }

    // Natural logarithm of the row's sum of exponentials, the sink's (natural units, -inf: none) included; -inf for a
    // row that saw no key.
    __device__ __forceinline__ float log_sum_exp(int32_t r, float sink) const {
        const float keys = kLn2 * (__log2f(row_sum(exact_sum[r])) - minus_reference[r]);
        const float larger = fmaxf(keys, sink), smaller = fminf(keys, sink);
        return smaller == -INFINITY ? larger : larger + log1pf(__expf(smaller - larger));
    }

   private:
    static __device__ __forceinline__ float thread_max(const float (&s)[kScores], int32_t r) {
        float top = s[2 * r];
#pragma unroll
        for (int32_t i = 0; i < kScores; ++i)
            if (((i >> 1) & 1) == r) top = fmaxf(top, s[i]);
        return top;
    }

    // P is added packed, once, before fp32: a key with the one half a block away, because keys that dominate a row
    // together are rarely that far apart, and then nothing is lost. Packed twice would save 24 instructions a block,
    // but where few keys dominate it costs up to 1.3 times the error of the same-precision reference; not packed at
    // all, 48 instructions and an eighth of the speed (docs/performance-log.md).
    static __device__ __forceinline__ float block_sum(const uint32_t (&p)[kChunks][4], int32_t r) {
        constexpr int32_t kHalf = kChunks / 2;
        float2 total{0.0f, 0.0f};
#pragma unroll
        for (int32_t c = 0; c < kHalf; ++c)
#pragma unroll
            for (int32_t i = r; i < 4; i += 2) {
                const float2 sums = Format::unpack(__hadd2(pair(p[c][i]), pair(p[c + kHalf][i])));
                total.x += sums.x;
                total.y += sums.y;
            }
        return total.x + total.y;
    }

    static __device__ __forceinline__ const Pair& pair(const uint32_t& bits) {
        return reinterpret_cast<const Pair&>(bits);
    }
};

}  // namespace foveal::sm90
