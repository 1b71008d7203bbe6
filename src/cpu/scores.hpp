// What becomes of q.k before the softmax: scale, softcap, ALiBi, bias and boolean mask, in the order of foveal.h.
#if defined(FOVEAL_CPU_SCORES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SCORES_HPP
#undef FOVEAL_CPU_SCORES_HPP
#else
#define FOVEAL_CPU_SCORES_HPP
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/exp.hpp"
#include "cpu/simd.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// s = scale * s, all `count` of them. count: a multiple of lanes().
inline HWY_NOINLINE void scale_scores(float* s, int64_t count, float scale) {
    const F32 d;
    const VecF32 factor = hn::Set(d, scale);
    for (int64_t i = 0; i < count; i += lanes()) hn::Store(hn::Mul(hn::Load(d, s + i), factor), d, s + i);
}

// s = cap * tanh(scale * s / cap)
inline HWY_NOINLINE void cap_scores(float* s, int64_t count, float scale, float cap) {
    const F32 d;
    const VecF32 factor = hn::Set(d, scale);
    const VecF32 limit = hn::Set(d, cap);
    for (int64_t i = 0; i < count; i += lanes()) {
        // A rounded 1/cap, or scale/cap, would be off for all scores alike.
        const VecF32 x = hn::Div(hn::Mul(hn::Load(d, s + i), factor), limit);
        hn::Store(hn::Mul(limit, tanh_of(x)), d, s + i);
    }
}

// ALiBi's slope, as large as it may be where queries and keys are no further apart than so: the distances' order is
// kept, and no product with one of them is infinite. A power of two, whose products are exact, so that keys at the same
// distance stay equal whether or not a product and a sum are one operation.
inline float finite_slope(float slope, int64_t most_distance) {
    int exponent = 0;
    std::frexp(std::numeric_limits<float>::max() / static_cast<float>(most_distance + 1), &exponent);
    const float most = std::ldexp(1.0f, exponent - 1);
    return slope > most ? most : slope < -most ? -most : slope;  // NaN stays
}

// s -= slope * |position - key|
// s: [keys, kVectors * lanes()], first_key the number of its first; position, slope: [kVectors * lanes()]
template <int kVectors>
HWY_NOINLINE void add_alibi(float* s, int32_t first_key, int32_t keys, const int32_t* position, const float* slope) {
    const F32 d;
    const I32 di;
    for (int v = 0; v < kVectors; ++v) {
        const auto own = hn::Load(di, position + v * lanes());
        const VecF32 factor = hn::Load(d, slope + v * lanes());
        float* row = s + v * lanes();
        for (int32_t j = first_key; j < first_key + keys; ++j, row += kVectors * lanes()) {
            const VecF32 distance = hn::ConvertTo(d, hn::Abs(hn::Sub(own, hn::Set(di, j))));
            hn::Store(hn::NegMulAdd(factor, distance, hn::Load(d, row)), d, row);
        }
    }
}

// The same for one query, keys along the lanes. s: [keys], writable up to a multiple of lanes()
inline HWY_NOINLINE void add_alibi_to_row(float* s, int32_t first_key, int32_t keys, int32_t position, float slope) {
    const F32 d;
    const I32 di;
    const VecF32 factor = hn::Set(d, slope);
    for (int32_t j = 0; j < keys; j += static_cast<int32_t>(lanes())) {
        const auto key = hn::Iota(di, first_key + j);
        const VecF32 distance = hn::ConvertTo(d, hn::Abs(hn::Sub(hn::Set(di, position), key)));
        hn::Store(hn::NegMulAdd(factor, distance, hn::Load(d, s + j)), d, s + j);
    }
}

// bias[i] = -inf where visible[i] is 0. bias: writable up to a multiple of lanes().
inline HWY_NOINLINE void hide_masked(const uint8_t* visible, int64_t count, float* bias) {
    const F32 d;
    const hn::Rebind<uint8_t, F32> d8;
    const int64_t n = lanes();
    for (int64_t i = 0; i < count; i += n) {
        HWY_ALIGN uint8_t tail[hn::MaxLanes(F32())] = {};
        const uint8_t* from = visible + i;
        if (count - i < n) {
            std::copy(from, visible + count, tail);
            from = tail;
        }
        const auto hidden = hn::Eq(hn::PromoteTo(U32(), hn::LoadU(d8, from)), hn::Zero(U32()));
        const VecF32 value = hn::Load(d, bias + i);
        hn::Store(hn::IfThenElse(hn::RebindMask(d, hidden), hn::Set(d, kMinusInfinity), value), d, bias + i);
    }
}

// s + bias; where the bias is -inf, that, whatever s is.
HWY_INLINE VecF32 biased(VecF32 s, VecF32 bias) {
    return hn::IfThenElse(hn::Eq(bias, hn::Set(F32(), kMinusInfinity)), bias, hn::Add(s, bias));
}

// s += bias, as biased() has it. keys: a multiple of kTransposeColumns.
// s: one vector of queries, [keys, lanes()] with s_pitch; bias: [lanes(), keys] with pitch
inline HWY_NOINLINE void add_bias(float* s, int64_t s_pitch, int32_t keys, const float* bias, int64_t pitch) {
    const F32 d;
    for (int32_t j = 0; j < keys; j += kTransposeColumns) {
        const FourColumns columns = load_columns(bias + j, pitch);
        for (int32_t c = 0; c < kTransposeColumns; ++c, s += s_pitch)
            hn::Store(biased(hn::Load(d, s), columns.column[c]), d, s);
    }
}

// The same for one query, keys along the lanes. s, bias: [keys], there up to a multiple of lanes()
inline HWY_NOINLINE void add_bias_to_row(float* s, int32_t keys, const float* bias) {
    const F32 d;
    for (int32_t j = 0; j < keys; j += static_cast<int32_t>(lanes()))
        hn::Store(biased(hn::Load(d, s + j), hn::Load(d, bias + j)), d, s + j);
}

// The same where all queries share the bias. s: [keys, width], width a multiple of lanes(); bias: [keys]
inline HWY_NOINLINE void add_shared_bias(float* s, int64_t width, int32_t keys, const float* bias) {
    const F32 d;
    for (int32_t j = 0; j < keys; ++j, s += width) {
        const VecF32 b = hn::Set(d, bias[j]);
        for (int64_t i = 0; i < width; i += lanes())
            hn::Store(bias[j] == kMinusInfinity ? b : hn::Add(hn::Load(d, s + i), b), d, s + i);
    }
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
