// Scores in base 2, as the softmax keeps them, where an option may put them anywhere in fp32's range. Host and device
// share it.
//
// A score times log2(e) may be past the end of fp32, and so may be the distance between two of them. So what lies
// beyond 2^125 is drawn in to an eighth of its distance from there: the order of the scores stays, no distance between
// them is infinite, and distances that large still are all that they need to be, beyond every exponent. Three bits of
// such a score are lost. Infinities and NaN stay what they are.
#pragma once

#include <cmath>
#include <numbers>

#include "problem/host_device.hpp"

namespace foveal::sm90 {

inline constexpr float kStraightEnd = 0x1p125f;  // up to here, of either sign, a score is simply multiplied

FOVEAL_HOST_DEVICE float to_base_2(float x) {
    constexpr auto kFactor = std::numbers::log2e_v<float>;
    const float magnitude = fabsf(x);
    if (!(magnitude > kStraightEnd)) return x * kFactor;
    return copysignf(fmaf(magnitude - kStraightEnd, kFactor / 8, kStraightEnd * kFactor), x);
}

// And back, of a log-sum-exp.
FOVEAL_HOST_DEVICE float from_base_2(float t) {
    constexpr auto kFactor = std::numbers::ln2_v<float>;
    constexpr float kEnd = kStraightEnd * std::numbers::log2e_v<float>, kLargest = 0x1.fffffep127f;
    const float magnitude = fabsf(t);
    if (!(magnitude > kEnd) || magnitude > kLargest) return t * kFactor;
    return copysignf(fminf(fmaf(magnitude - kEnd, 8 * kFactor, kStraightEnd), kLargest), t);
}

}  // namespace foveal::sm90
