// Softcap's polynomial: c tanh(x / c) where |x / c| is small, x = scale * q.k, as an exponent in base 2.
//
// c tanh(x / c) * log2(e) = z (w^2 + constant) with z = factor * q.k and w = z^2 + offset: the square is completed and
// every other factor drawn into z. As many operations as Horner's scheme, but each with one constant, which then need
// not be in a register.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>

#include "problem/mask.hpp"

namespace foveal::sm90 {

// Up to there softcap has two fast forms (softcap.cuh). Both are off by a part of the cap, the one where scores are
// near 0, by 4e-7 of it, the other near the polynomial's end, by 6e-6 of it: with larger caps that shows.
inline constexpr float kLargestFastSoftcap = 64.0F;

struct SoftcapPolynomial {
    float factor, offset, constant;
    float last;            // |q.k| up to which it holds; -1: never
    uint32_t last_w_bits;  // of w there, which is negative and grows with |q.k|; ~0: never
};

// For a scale that is not positive it holds nowhere.
inline SoftcapPolynomial softcap_polynomial(double scale, double softcap) {
    // tanh(y) = y (p[0] + p[1] v + p[2] v^2) with v = y^2: minimax on |y| <= kEnd, relative error 1.23e-5 (Remez
    // exchange, 2026-11-25).
    constexpr double kEnd = 0.45;
    constexpr double p[3] = {0.9999876601361605, -0.33222704635913364, 0.11835344690629275};
    constexpr double kMiddle = p[1] / (2 * p[2]);  // p[2] (v + kMiddle)^2 + p[0] - p[2] kMiddle^2
    const double slope = scale / softcap,
                 to_base_2 = scale * std::numbers::log2e;  // y / q.k, and the exponent's beginning
    const double factor = std::pow(to_base_2 * p[2] * std::pow(slope, 4), 0.2);
    const double w_of_v = factor / slope * (factor / slope);
    const auto offset = static_cast<float>(kMiddle * w_of_v);
    const auto constant = static_cast<float>(to_base_2 / factor * (p[0] - p[2] * kMiddle * kMiddle));
    const auto last_w = static_cast<float>((kMiddle + kEnd * kEnd) * w_of_v);
    const auto last = static_cast<float>(kEnd / slope);
    for (const float x : {static_cast<float>(factor), offset, constant, last_w, last})
        if (!std::isnormal(x)) return {1.0F, 1.0F, 1.0F, -1.0F, ~0U};
    return {static_cast<float>(factor), offset, constant, last, std::bit_cast<uint32_t>(last_w)};
}

struct SoftcapTerms {
    float z, w;
};

// factor: the polynomial's.
FOVEAL_HOST_DEVICE SoftcapTerms softcap_terms(const SoftcapPolynomial& polynomial, float qk, float factor) {
    const float z = factor * qk;
    return {z, fmaf(z, z, polynomial.offset)};
}
FOVEAL_HOST_DEVICE SoftcapTerms softcap_terms(const SoftcapPolynomial& polynomial, float qk) {
    return softcap_terms(polynomial, qk, polynomial.factor);
}

// The exponent, and `shift` added to it.
FOVEAL_HOST_DEVICE float softcap_exponent(const SoftcapPolynomial& polynomial, SoftcapTerms terms, float shift) {
    return fmaf(terms.z, fmaf(terms.w, terms.w, polynomial.constant), shift);
}

}  // namespace foveal::sm90
