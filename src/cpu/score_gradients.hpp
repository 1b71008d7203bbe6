// From scores to the gradient with respect to them, element by element.
#if defined(FOVEAL_CPU_SCORE_GRADIENTS_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SCORE_GRADIENTS_HPP
#undef FOVEAL_CPU_SCORE_GRADIENTS_HPP
#else
#define FOVEAL_CPU_SCORE_GRADIENTS_HPP
#endif

#include "cpu/dropout.hpp"
#include "cpu/exp.hpp"
#include "cpu/simd.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// x becomes p = exp(scale * x - shift), dp becomes dx = p * (dp - delta): exactly 0 where p is, whatever dp holds.
// x, dp: [keys, kVectors * lanes()]; shift, delta: [kVectors * lanes()]
template <int kVectors>
HWY_NOINLINE void differentiate_softmax(float* x, float* dp, int32_t keys, float scale, const float* shift,
                                        const float* delta) {
    const F32 d;
    const ScaledExp exp_of(1.0f, 0);
    const VecF32 factor = hn::Set(d, scale);
    for (int v = 0; v < kVectors; ++v) {
        const VecF32 own_shift = hn::Load(d, shift + v * lanes());
        const VecF32 own_delta = hn::Load(d, delta + v * lanes());
        for (int32_t j = 0; j < keys; ++j) {
            const int64_t at = (j * kVectors + v) * lanes();
            const VecF32 p = exp_of(hn::MulSub(hn::Load(d, x + at), factor, own_shift));
            const VecF32 dx = hn::Mul(p, hn::Sub(hn::Load(d, dp + at), own_delta));
            hn::Store(p, d, x + at);
            hn::Store(hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), dx), d, dp + at);
        }
    }
}

// The same under dropout: with m = 0 where a weight is dropped, else 1, x becomes m * p and dp becomes
// dx = p * (m * dropout_scale * dp - delta).
template <int kVectors>
HWY_NOINLINE void differentiate_dropped_softmax(float* x, float* dp, int32_t first_key, int32_t keys, float scale,
                                                const float* shift, const float* delta, float dropout_scale,
                                                const DroppedOfQueries& of) {
    const F32 d;
    const ScaledExp exp_of(1.0f, 0);
    const VecF32 factor = hn::Set(d, scale), dp_factor = hn::Set(d, dropout_scale);
    for (int v = 0; v < kVectors; ++v) {
        const VecF32 own_shift = hn::Load(d, shift + v * lanes());
        const VecF32 own_delta = hn::Load(d, delta + v * lanes());
        const auto differentiate = [&](int32_t j, VecU32 dropped_bits) {
            const int64_t at = ((j - first_key) * kVectors + v) * lanes();
            const VecF32 dropped = hn::BitCast(d, dropped_bits);
            const VecF32 p = exp_of(hn::MulSub(hn::Load(d, x + at), factor, own_shift));
            const VecF32 own_dp = hn::AndNot(dropped, hn::Mul(hn::Load(d, dp + at), dp_factor));
            const VecF32 dx = hn::Mul(p, hn::Sub(own_dp, own_delta));
            hn::Store(hn::AndNot(dropped, p), d, x + at);
            hn::Store(hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), dx), d, dp + at);
        };
        for_dropped_pairs(of, v, first_key, keys, [&](int32_t j, VecU32 even, VecU32 odd) {
            differentiate(j, even);
            differentiate(j + 1, odd);
        });
    }
}

// dx becomes dx * (1 - tanh^2), tanh being capped / cap.
inline HWY_NOINLINE void differentiate_cap(float* dx, const float* capped, int64_t count, float cap) {
    const F32 d;
    const VecF32 limit = hn::Set(d, cap);
    for (int64_t i = 0; i < count; i += lanes()) {
        const VecF32 tanh = hn::Div(hn::Load(d, capped + i), limit);
        hn::Store(hn::Mul(hn::Load(d, dx + i), hn::NegMulAdd(tanh, tanh, hn::Set(d, 1.0f))), d, dx + i);
    }
}

// sums[i] += sum over keys of dx[j, i] * |position[i] - key j|
// dx: [keys, kVectors * lanes()], first_key the number of its first; position, sums: [kVectors * lanes()]
template <int kVectors>
HWY_NOINLINE void add_distances(const float* dx, int32_t first_key, int32_t keys, const int32_t* position,
                                float* sums) {
    const F32 d;
    const I32 di;
    for (int v = 0; v < kVectors; ++v) {
        const auto own = hn::Load(di, position + v * lanes());
        VecF32 sum = hn::Load(d, sums + v * lanes());
        for (int32_t j = 0; j < keys; ++j) {
            const VecF32 distance = hn::ConvertTo(d, hn::Abs(hn::Sub(own, hn::Set(di, first_key + j))));
            sum = hn::MulAdd(hn::Load(d, dx + (j * kVectors + v) * lanes()), distance, sum);
        }
        hn::Store(sum, d, sums + v * lanes());
    }
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
