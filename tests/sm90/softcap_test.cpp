// The kernel's polynomial for softcap, in the arithmetic of the kernel, against tanh.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "sm90/scores/softcap.hpp"

namespace foveal::sm90 {
namespace {

TEST(SoftcapPolynomial, IsTanhUpToItsEnd) {
    constexpr int kSteps = 20000;
    for (const double scale : {1.0, 0.088388, 1e-6, 300.0})
        for (const double softcap : {0.01, 2.0, 30.0, 50.0, 1e6}) {
            const SoftcapPolynomial polynomial = softcap_polynomial(scale, softcap);
            ASSERT_GT(polynomial.last, 0);
            EXPECT_NEAR(polynomial.last * scale / softcap, 0.45, 1e-6);
            for (int i = -kSteps; i <= kSteps; ++i) {
                const float qk = polynomial.last * (static_cast<float>(i) / kSteps);
                const SoftcapTerms terms = softcap_terms(polynomial, qk);
                const double exact = softcap * std::tanh(scale * qk / softcap) * std::numbers::log2e;
                ASSERT_NEAR(softcap_exponent(polynomial, terms, 0.0F), exact, 1.3e-5 * std::abs(exact) + 1e-30)
                    << "scale " << scale << ", softcap " << softcap << ", q.k " << qk;
            }
        }
}

// The kernel looks for the least bits of w: the larger |q.k|, the smaller they must be, past the end of the range too.
TEST(SoftcapPolynomial, BitsOfWFallAsScoresGrow) {
    const SoftcapPolynomial polynomial = softcap_polynomial(0.125, 30.0);
    const auto bits = [&](float qk) { return std::bit_cast<uint32_t>(softcap_terms(polynomial, qk).w); };
    for (int i = 0; i < 1000; ++i) {
        const float inside = polynomial.last * static_cast<float>(i) / 1000;
        EXPECT_GE(bits(inside), bits(inside + polynomial.last / 1000));
        EXPECT_EQ(bits(inside), bits(-inside));
        EXPECT_GE(bits(inside), polynomial.last_w_bits);
    }
    for (const float beyond : {1.001F, 1.5F, 3.0F, 10.0F, 1e6F, 1e15F, 1e30F, HUGE_VALF, std::nanf("")})
        for (const float sign : {1.0F, -1.0F})
            EXPECT_LT(bits(polynomial.last * beyond * sign), polynomial.last_w_bits) << beyond;
}

TEST(SoftcapPolynomial, HoldsNowhereIfItsFactorsAreNotNumbers) {
    for (const double scale : {1e-30, 1.0, 1e30})
        for (const double softcap : {1e-37, 1e37}) {
            const SoftcapPolynomial polynomial = softcap_polynomial(scale, softcap);
            if (polynomial.last < 0) {
                EXPECT_EQ(polynomial.last_w_bits, ~0U);
                EXPECT_LT(std::bit_cast<uint32_t>(softcap_terms(polynomial, 0.0F).w), polynomial.last_w_bits);
            } else {
                EXPECT_TRUE(std::isfinite(softcap_exponent(polynomial, softcap_terms(polynomial, polynomial.last), 0)));
            }
        }
    EXPECT_LT(softcap_polynomial(1e-30, 1e37).last, 0);
}

}  // namespace
}  // namespace foveal::sm90
