// bf16, f16 and e4m3 on the host, written for the tests and the tool.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "foveal/foveal.h"

namespace foveal_testing {

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = (bits >> 10) & 31;
    const uint32_t fraction = bits & 0x3FF;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | fraction << 13);
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// Round to nearest, ties to even; overflow to infinity; NaN stays NaN, with the upper bits of its payload.
inline uint16_t float_to_f16(float x) {
    const auto bits = std::bit_cast<uint32_t>(x);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above
    if (magnitude < 0x38800000) {                                              // subnormal: a multiple of 2^-24
        const float units = std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(units));
    }
    const uint32_t rounded = magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | rounded >> 13);
}

// OCP FP8 E4M3: a sign, four bits of exponent of bias 7, three of mantissa; all ones is NaN and nothing is infinite.
inline float e4m3_to_float(uint8_t code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    if ((code & 0x7F) == 0x7F) return std::copysign(NAN, code & 0x80 ? -1.0f : 1.0f);
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                          : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
    return code & 0x80 ? -magnitude : magnitude;
}

// Round to nearest, ties to even; what is larger than 448 becomes 448; NaN stays NaN.
inline uint8_t float_to_e4m3(float x) {
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    if (std::isnan(x)) return static_cast<uint8_t>(sign | 0x7F);
    const float magnitude = std::fmin(std::fabs(x), 448.0f);
    if (magnitude == 0) return sign;
    const int exponent = std::max(std::ilogb(magnitude), -6);
    // In units of the last bit: 8 to 16, or 0 to 8 of a subnormal number; 16 and 8 are the next exponent's first.
    const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    return static_cast<uint8_t>(sign | ((exponent + 6) * 8 + units));
}

inline float round_to(foveal_dtype dtype, float x) {
    if (dtype == FOVEAL_BF16) return bf16_to_float(float_to_bf16(x));
    if (dtype == FOVEAL_F16) return f16_to_float(float_to_f16(x));
    if (dtype == FOVEAL_E4M3) return e4m3_to_float(float_to_e4m3(x));
    return x;
}

// One rounding, from float64.
double round_to(foveal_dtype dtype, double x);

double largest_finite(foveal_dtype dtype);

}  // namespace foveal_testing
