// The softmax's exponential, exp(scale * x) * 2^-bias for x <= 0, and the softcap's hyperbolic tangent.
#if defined(FOVEAL_CPU_EXP_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_EXP_HPP
#undef FOVEAL_CPU_EXP_HPP
#else
#define FOVEAL_CPU_EXP_HPP
#endif

#include <algorithm>
#include <limits>

#include "cpu/simd.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// The upper part has so few bits that its product with an exponent is exact.
inline constexpr float kLn2Upper = 0x1.62e4p-1f;
inline constexpr float kLn2Lower = 0x1.7f7d1cp-20f;

// Added to a logarithm to base 2, it leaves the nearest integer plus 127 in the lowest mantissa bits: a biased
// exponent.
inline constexpr float kExponentShifter = 12582912.0f + 127.0f;

// q(r) of exp(r) = 1 + r + r^2 q(r): the polynomial of degree 4 that minimises the largest relative error of exp(r) on
// |r| <= ln(2)/2 (fitted by iteratively reweighted least squares, Lawson's algorithm, in double precision; 3.8e-9 after
// rounding its coefficients to float).
HWY_INLINE VecF32 exp_tail(VecF32 r) {
    const F32 d;
    VecF32 q = hn::MulAdd(hn::Set(d, 0x1.6a2434p-10f), r, hn::Set(d, 0x1.1239e2p-7f));
    q = hn::MulAdd(q, r, hn::Set(d, 0x1.5558f2p-5f));
    q = hn::MulAdd(q, r, hn::Set(d, 0x1.555492p-3f));
    return hn::MulAdd(q, r, hn::Set(d, 0x1.fffffcp-2f));
}

// 2^n from y / ln 2 + kExponentShifter (less a bias), n the nearest integer.
HWY_INLINE VecF32 power_of_two(VecF32 shifted) {
    return hn::BitCast(F32(), hn::ShiftLeft<23>(hn::BitCast(U32(), shifted)));
}

// exp(scale * x) * 2^-bias for x in [-inf, 0], scale > 0, 0 <= bias <= 31. Relative error below 2^-23 (1 ulp) whatever
// the scale, as the product is never rounded; without FMA it is, and adds |scale * x| * 2^-24. exp(0) is exactly
// 2^-bias. Results below 2^-126, and so exp(-inf), are exactly 0. NaN gives NaN. x > 0 is outside the domain.
//
// exp(y) = 2^n * exp(r) with n = round(y / ln 2), r = y - n ln 2 (Cody and Waite's split of ln 2: the product of n and
// the upper part is exact).
class ScaledExp {
   public:
    ScaledExp(float scale, int bias)
        : scale_(hn::Set(F32(), scale)),
          scale_log2e_(hn::Set(F32(), std::min(scale * 1.44269504f, kLargest))),
          // The lowest mantissa bits of y / ln 2 + shifter_ are the biased exponent of the result.
          shifter_(hn::Set(F32(), kExponentShifter - static_cast<float>(bias))),
          lowest_(hn::Set(F32(), std::max(-0.693147181f * static_cast<float>(126 - bias) / scale, -kLargest))) {}

    HWY_INLINE VecF32 operator()(VecF32 x) const {
        const F32 d;
        const VecF32 shifted = hn::MulAdd(x, scale_log2e_, shifter_);
        const VecF32 n = hn::Sub(shifted, shifter_);
        VecF32 r = hn::MulSub(x, scale_, hn::Mul(n, hn::Set(d, kLn2Upper)));
        r = hn::NegMulAdd(n, hn::Set(d, kLn2Lower), r);
        VecF32 p = hn::MulAdd(exp_tail(r), r, hn::Set(d, 1.0f));
        p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
        // The comparison is false for NaN, and a product with NaN is NaN.
        return hn::IfThenZeroElse(hn::Lt(x, lowest_), hn::Mul(p, power_of_two(shifted)));
    }

   private:
    static constexpr float kLargest = std::numeric_limits<float>::max();

    VecF32 scale_;
    VecF32 scale_log2e_;
    VecF32 shifter_;
    VecF32 lowest_;
};

// The same for weights that are rounded to bf16, in two thirds of the operations: scale * log2(e) * x is rounded, which
// adds |scale * x| * 2^-24 to the relative error, and results below 2^-126 are not set to zero, but exp(-inf) is. 2^f
// is 1 + f q(f) on |f| <= 1/2, q of degree 4 fitted as above (1.1e-7).
#if FOVEAL_TARGET_HAS_PAIRS
class WeightExp {
   public:
    WeightExp(float scale, int bias)
        : scale_log2e_(hn::Set(F32(), std::min(scale * 1.44269504f, std::numeric_limits<float>::max()))),
          minus_bias_(hn::Set(F32(), -static_cast<float>(bias))) {}

    HWY_INLINE VecF32 operator()(VecF32 x) const {
        const F32 d;
        const VecF32 t = hn::MulAdd(x, scale_log2e_, minus_bias_);
        const VecF32 f{_mm512_reduce_ps(t.raw, 0)};  // t less the nearest integer; of -inf 0
        VecF32 q = hn::MulAdd(hn::Set(d, 0x1.5bb9fep-10f), f, hn::Set(d, 0x1.3cea88p-7f));
        q = hn::MulAdd(q, f, hn::Set(d, 0x1.c6b754p-5f));
        q = hn::MulAdd(q, f, hn::Set(d, 0x1.ebf9bcp-3f));
        q = hn::MulAdd(q, f, hn::Set(d, 0x1.62e42ap-1f));
        const VecF32 power = hn::MulAdd(q, f, hn::Set(d, 1.0f));
        return VecF32{_mm512_scalef_ps(power.raw, hn::Sub(t, f).raw)};
    }

   private:
    VecF32 scale_log2e_, minus_bias_;
};
#else
using WeightExp = ScaledExp;
#endif

// tanh(x), relative error below 2^-22.5 for every x; infinities give 1 and NaN gives NaN.
//
// With y = -2|x| and e = exp(y) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which loses nothing where x is small, it is
// -e / (2 + e). What rounding takes from e and from the quotient is carried along and added at the end: a softcap
// multiplies it.
HWY_INLINE VecF32 tanh_of(VecF32 x) {
    const F32 d;
    const VecF32 lowest = hn::Set(d, -40.0f);  // exp(y) no longer counts
    const VecF32 unlimited = hn::Mul(hn::Set(d, -2.0f), hn::Abs(x));
    const VecF32 y = hn::IfThenElse(hn::Lt(unlimited, lowest), lowest, unlimited);
    const VecF32 shifter = hn::Set(d, kExponentShifter);
    const VecF32 shifted = hn::MulAdd(y, hn::Set(d, 1.44269504f), shifter);
    const VecF32 n = hn::Sub(shifted, shifter);
    VecF32 r = hn::NegMulAdd(n, hn::Set(d, kLn2Upper), y);
    r = hn::NegMulAdd(n, hn::Set(d, kLn2Lower), r);
    const VecF32 power = power_of_two(shifted);
    const VecF32 exp_minus_one = hn::MulAdd(hn::Mul(r, r), exp_tail(r), r);
    const VecF32 whole = hn::Sub(power, hn::Set(d, 1.0f));
    const VecF32 part = hn::Mul(exp_minus_one, power);
    const VecF32 e = hn::Add(whole, part);
    const VecF32 e_rest = hn::Add(hn::Sub(whole, e), part);
    const VecF32 divisor = hn::Add(e, hn::Set(d, 2.0f));
    const VecF32 divisor_rest = hn::Add(hn::Add(hn::Sub(hn::Set(d, 2.0f), divisor), e), e_rest);
    const VecF32 quotient = hn::Div(e, divisor);
    const VecF32 remainder =
        hn::NegMulAdd(quotient, divisor_rest, hn::Add(hn::NegMulAdd(quotient, divisor, e), e_rest));
    return hn::CopySign(hn::MulAdd(remainder, hn::ApproximateReciprocal(divisor), quotient), x);
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
