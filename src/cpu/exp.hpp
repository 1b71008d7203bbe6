// The softmax's exponential: exp(scale * x) * 2^-bias for x <= 0.
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

// exp(scale * x) * 2^-bias for x in [-inf, 0], scale > 0, 0 <= bias <= 31. Relative error below 2^-23 (1 ulp) whatever
// the scale, as the product is never rounded; without FMA it is, and adds |scale * x| * 2^-24. exp(0) is exactly
// 2^-bias. Results below 2^-126, and so exp(-inf), are exactly 0. NaN gives NaN. x > 0 is outside the domain.
//
// exp(y) = 2^n * exp(r) with n = round(y / ln 2), r = y - n ln 2 (Cody and Waite's split of ln 2: the product of n and
// the upper part is exact). exp(r) = 1 + r + r^2 q(r): q is the polynomial of degree 4 that minimises the largest
// relative error on |r| <= ln(2)/2 (fitted by iteratively reweighted least squares, Lawson's algorithm, in double
// precision; 3.8e-9 after rounding its coefficients to float).
class ScaledExp {
   public:
    ScaledExp(float scale, int bias)
        : scale_(hn::Set(F32(), scale)),
          scale_log2e_(hn::Set(F32(), std::min(scale * 1.44269504f, kLargest))),
          // The lowest mantissa bits of y / ln 2 + shifter_ are the biased exponent of the result.
          shifter_(hn::Set(F32(), 12582912.0f + 127.0f - static_cast<float>(bias))),
          lowest_(hn::Set(F32(), std::max(-0.693147181f * static_cast<float>(126 - bias) / scale, -kLargest))) {}

    HWY_INLINE VecF32 operator()(VecF32 x) const {
        const F32 d;
        const VecF32 shifted = hn::MulAdd(x, scale_log2e_, shifter_);
        const VecF32 n = hn::Sub(shifted, shifter_);
        VecF32 r = hn::MulSub(x, scale_, hn::Mul(n, hn::Set(d, 0x1.62e4p-1f)));
        r = hn::NegMulAdd(n, hn::Set(d, 0x1.7f7d1cp-20f), r);
        VecF32 p = hn::MulAdd(hn::Set(d, 0x1.6a2434p-10f), r, hn::Set(d, 0x1.1239e2p-7f));
        p = hn::MulAdd(p, r, hn::Set(d, 0x1.5558f2p-5f));
        p = hn::MulAdd(p, r, hn::Set(d, 0x1.555492p-3f));
        p = hn::MulAdd(p, r, hn::Set(d, 0x1.fffffcp-2f));
        p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
        p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
        const VecF32 power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(U32(), shifted)));
        // The comparison is false for NaN, and a product with NaN is NaN.
        return hn::IfThenZeroElse(hn::Lt(x, lowest_), hn::Mul(p, power));
    }

   private:
    static constexpr float kLargest = std::numeric_limits<float>::max();

    VecF32 scale_;
    VecF32 scale_log2e_;
    VecF32 shifter_;
    VecF32 lowest_;
};

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
