// Softcap's polynomials: c tanh(x / c) where |x / c| is small, x = scale * q.k, as an exponent in base 2.
//
// With z = factor * q.k and w = z^2 + offset, c tanh(x / c) * log2(e) = z w, or z (w^2 + constant): the square is
// completed and every other factor drawn into z. As many operations as Horner's scheme, but each with one constant,
// which then need not be in a register.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>

#include "../mask.hpp"

namespace foveal::sm90 {

struct SoftcapTerms {
    float z, w;
};

// What both have. w is negative where they hold, and grows with |q.k|.
struct SoftcapPolynomial {
    float factor, offset;
    float last;            // |q.k| up to which it holds; -1: never
    uint32_t last_w_bits;  // of w there; ~0: never

    FOVEAL_HOST_DEVICE SoftcapTerms terms(float qk) const {
        const float z = factor * qk;
        return {z, fmaf(z, z, offset)};
    }
};

// exponent(): and `shift` added to it.
struct SoftcapCubic : SoftcapPolynomial {
    static constexpr double kEnd = 0.165;  // |x / c| up to which it holds

    FOVEAL_HOST_DEVICE float exponent(SoftcapTerms terms, float shift) const { return fmaf(terms.z, terms.w, shift); }
};
struct SoftcapQuintic : SoftcapPolynomial {
    static constexpr double kEnd = 0.45;

    float constant;

    FOVEAL_HOST_DEVICE float exponent(SoftcapTerms terms, float shift) const {
        return fmaf(terms.z, fmaf(terms.w, terms.w, constant), shift);
    }
};

// slope: of x / c over q.k.
inline SoftcapPolynomial softcap_polynomial(double factor, double offset, double slope, double end) {
    const double last = end / slope, last_z = factor * last;
    const SoftcapPolynomial polynomial{static_cast<float>(factor), static_cast<float>(offset), static_cast<float>(last),
                                       std::bit_cast<uint32_t>(static_cast<float>(last_z * last_z + offset))};
    for (const float x :
         {polynomial.factor, polynomial.offset, polynomial.last, std::bit_cast<float>(polynomial.last_w_bits)})
        if (!std::isnormal(x) || last < 0) return {1.0F, 1.0F, -1.0F, ~0U};
    return polynomial;
}

// Coefficients of tanh(y) / y in powers of y^2: minimax on |y| <= kEnd, relative error 1.23e-5 (Remez exchange,
// 2026-11-25 and -28). For a scale that is not positive they hold nowhere.
inline SoftcapCubic softcap_cubic(double scale, double softcap) {
    constexpr double p[2] = {0.9999877933104787, -0.3297388730753545};
    const double slope = scale / softcap, to_base_2 = scale * std::numbers::log2e;
    const double factor = -std::cbrt(-to_base_2 * p[1] * slope * slope);
    return {softcap_polynomial(factor, to_base_2 * p[0] / factor, slope, SoftcapCubic::kEnd)};
}

inline SoftcapQuintic softcap_quintic(double scale, double softcap) {
    constexpr double p[3] = {0.9999876601361605, -0.33222704635913364, 0.11835344690629275};
    constexpr double kMiddle = p[1] / (2 * p[2]);  // p[2] (y^2 + kMiddle)^2 + p[0] - p[2] kMiddle^2
    const double slope = scale / softcap, to_base_2 = scale * std::numbers::log2e;
    const double factor = std::pow(to_base_2 * p[2] * std::pow(slope, 4), 0.2);
    const double z_of_y = factor / slope;
    const auto constant = static_cast<float>(to_base_2 / factor * (p[0] - p[2] * kMiddle * kMiddle));
    const SoftcapPolynomial polynomial = softcap_polynomial(factor, kMiddle * z_of_y * z_of_y, slope,
                                                            std::isnormal(constant) ? SoftcapQuintic::kEnd : 0);
    return {polynomial, constant};
}

}  // namespace foveal::sm90
