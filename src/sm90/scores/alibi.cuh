// ALiBi: a score less slope * |i + off - j|, the distance between the query's position and the key's.
#pragma once

#include <cstdint>

#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Larger slopes do not take alibi_exponents(): its two terms, slope times a distance of up to a block each, would be
// rounded by more than an exponent may be off (2^-14 here, of 8 * log2(e) * 128).
inline constexpr float kLargestLinearSlope = 8.0f;

// A slope, as large as it may be in a sequence of these lengths: the distances' order is kept, and no product with one
// of them is infinite.
__device__ __forceinline__ float finite_slope(float slope, int32_t len_q, int32_t len_k) {
    const float most = __fdividef(0x1.fp127f, static_cast<float>(len_q) + static_cast<float>(len_k));
    return fabsf(slope) > most ? copysignf(most, slope) : slope;
}

// s = factor * s - slope * distance. distance: i + off - j of the thread's first row and column.
template <int32_t kScores>
__device__ __forceinline__ void subtract_distances(float (&s)[kScores], float factor, float slope, int32_t distance) {
    const auto first = static_cast<float>(distance);
#pragma unroll
    for (int32_t i = 0; i < kScores; ++i) {
        const int32_t more = Fragment::row_offset(i) - Fragment::column_offset(i);
        s[i] = fmaf(s[i], factor, -slope * fabsf(first + static_cast<float>(more)));
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

}  // namespace foveal::sm90
