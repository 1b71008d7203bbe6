// How the softmax scales a group's scores, and what becomes of its sums at the end: shared by tiles and by parts.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include "cpu/tile.hpp"

namespace foveal::cpu {

// A query's sum of exponentials over the keys alone: exp(top + logarithm). Without a key, logarithm is -inf.
struct KeySum {
    double top, logarithm;
    double log_sum_exp() const { return top + logarithm; }
};

// The softmax scales by a positive number. A negative scale's sign, or zero (a mask's -inf times zero would be NaN),
// goes to the queries instead, where it is exact.
struct Scaling {
    bool scales_scores;  // is a score more than q.k, to which the softmax applies the scale?
    float query_factor;
    float positive_scale;
    // Probabilities are kept as p * 2^-bias_log2, so that they sum to at most 1 and no partial sum of p * v overflows
    // where the result does not. In f16 p is rounded to a format of which the range is small, and v * 2^29 cannot
    // overflow.
    int bias_log2;

    // Of a query with this maximum and sum.
    KeySum sum_of_keys(float max, float sum) const {
        if (sum == 0) return {0, -std::numeric_limits<double>::infinity()};
        return {static_cast<double>(positive_scale) * static_cast<double>(max),
                std::log(static_cast<double>(sum)) + std::numbers::ln2 * bias_log2};
    }
};

inline Scaling scaling_of(const HeadGroup& group) {
    const bool scales_scores = group.softcap > 0 || group.alibi_slopes != nullptr || group.bias != nullptr;
    return {.scales_scores = scales_scores,
            .query_factor = scales_scores || group.scale > 0 ? 1.0f
                            : group.scale < 0                ? -1.0f
                                                             : 0.0f,
            .positive_scale = scales_scores || group.scale == 0 ? 1.0f : std::abs(group.scale),
            .bias_log2 =
                group.dtype == DType::f16 ? 0 : static_cast<int>(std::bit_width(static_cast<uint32_t>(group.len_k)))};
}

// log(exp(a) + exp(b)); neither is +inf.
inline double log_add_exp(double a, double b) {
    const double difference = b - a;
    if (difference > 0) return b + std::log1p(std::exp(-difference));
    return std::isinf(a) ? a : a + std::log1p(std::exp(difference));
}

// The share of the denominator that is not the sink's.
inline float weight_against_sink(const KeySum& keys, double sink) {
    if (std::isinf(keys.logarithm)) return 1.0f;
    // The difference first: beside large numbers the logarithm is lost.
    return static_cast<float>(1 / (1 + std::exp(sink - keys.top - keys.logarithm)));
}

}  // namespace foveal::cpu
