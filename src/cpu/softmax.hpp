// The online softmax of a tile: one block of keys at a time, with a running maximum and sum for each query.
#if defined(FOVEAL_CPU_SOFTMAX_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_SOFTMAX_HPP
#undef FOVEAL_CPU_SOFTMAX_HPP
#else
#define FOVEAL_CPU_SOFTMAX_HPP
#endif

#include <cmath>
#include <type_traits>

#include "cpu/exp.hpp"
#include "cpu/scores.hpp"
#include "cpu/simd.hpp"
#include "problem/dtype.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// For each query, along the lanes. Scores here are q.k, not yet scaled unless an option needs them so: the difference
// to the maximum is, so that scaling rounds in proportion to what matters and a maximum far from zero costs no
// accuracy. sum is that of exp(scale * (score - max)) * 2^-bias over the keys so far.
struct RunningSoftmax {
    float* max;      // [kVectors * lanes()], -inf before the first visible key
    float* sum;      // [kVectors * lanes()]
    float* rescale;  // [kVectors * lanes()]: by how much the last block changed the weight of those before it
};

// Scores of keys that a query does not see become -inf.
// s: [keys, kVectors * lanes()], first_key the number of its first; query i sees [begin[i], end[i])
template <int kVectors>
HWY_NOINLINE void mask_scores(float* s, int32_t first_key, int32_t keys, const int32_t* begin, const int32_t* end) {
    const F32 d;
    const I32 di;
    for (int v = 0; v < kVectors; ++v) {
        const auto before = hn::Sub(hn::Load(di, begin + v * lanes()), hn::Set(di, 1));
        const auto after = hn::Load(di, end + v * lanes());
        float* row = s + v * lanes();
        for (int32_t j = first_key; j < first_key + keys; ++j, row += kVectors * lanes()) {
            const auto key = hn::Set(di, j);
            const auto visible = hn::And(hn::Gt(key, before), hn::Lt(key, after));
            hn::Store(hn::IfThenElse(hn::RebindMask(d, visible), hn::Load(d, row), hn::Set(d, kMinusInfinity)), d, row);
        }
    }
}

// Rounds x >= 0 to a format with fewer mantissa bits, to nearest even: adding and subtracting 2^shift times the power
// of two at or below x leaves 24 - shift significant bits, and no more than the format has where it is subnormal.
class RoundMantissa {
   public:
    // smallest_normal: of the format.
    RoundMantissa(int shift, float smallest_normal)
        : shift_(hn::Set(U32(), static_cast<uint32_t>(shift) << 23)),
          smallest_normal_(hn::BitCast(U32(), hn::Set(F32(), smallest_normal))) {}

    HWY_INLINE VecF32 operator()(VecF32 x) const {
        const U32 d;
        const VecU32 exponent = hn::And(hn::BitCast(d, x), hn::Set(d, 0x7F800000));
        const VecF32 large = hn::BitCast(F32(), hn::Add(hn::Max(exponent, smallest_normal_), shift_));
        return hn::Sub(hn::Add(x, large), large);
    }

   private:
    VecU32 shift_;
    VecU32 smallest_normal_;
};

struct KeepMantissa {
    HWY_INLINE VecF32 operator()(VecF32 x) const { return x; }
};

// The larger of max and the scores of one column of vectors, in independent chains because a maximum takes 4 cycles.
// s: [keys, lanes()] with pitch; keys a multiple of 4.
HWY_INLINE VecF32 column_max(const float* s, int64_t pitch, int32_t keys, VecF32 max) {
    const F32 d;
    VecF32 m0 = max, m1 = max, m2 = max, m3 = max;
    for (int32_t j = 0; j < keys; j += 4, s += 4 * pitch) {
        m0 = hn::Max(m0, hn::Load(d, s));
        m1 = hn::Max(m1, hn::Load(d, s + pitch));
        m2 = hn::Max(m2, hn::Load(d, s + 2 * pitch));
        m3 = hn::Max(m3, hn::Load(d, s + 3 * pitch));
    }
    return hn::Max(hn::Max(m0, m1), hn::Max(m2, m3));
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
FOVEAL_BEFORE_PAIRS();
namespace foveal::cpu::HWY_NAMESPACE {

// How the second product wants the probabilities of keys j and j + 1 of a column of vectors: two floats, each where its
// score was ...
template <class Round>
struct FloatWeights {
    static constexpr bool kInPairs = false;
    Round round;
    HWY_INLINE void store(VecF32 p0, VecF32 p1, int32_t j, int64_t pitch, float* column) const {
        hn::Store(round(p0), F32(), column + j * pitch);
        hn::Store(round(p1), F32(), column + (j + 1) * pitch);
    }
};

// ... or a word of two numbers in bf16, in half the rows.
struct PairWeights {
    static constexpr bool kInPairs = true;
#if FOVEAL_TARGET_HAS_PAIRS
    HWY_INLINE void store(VecF32 p0, VecF32 p1, int32_t j, int64_t pitch, float* column) const {
        const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p1.raw, p0.raw));  // all p0, all p1
        const auto words = _mm512_permutexvar_epi16(_mm512_load_si512(kInTurn), halves);
        hn::Store(VecU32{words}, U32(), reinterpret_cast<uint32_t*>(column + j / 2 * pitch));
    }

   private:
    alignas(64) static constexpr uint16_t kInTurn[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#endif
};

// s becomes exp(scale * (s - max)) * 2^-bias, as the second product wants it; the running state takes the block in. The
// sum is that of the unrounded values. NaN scores, and +inf ones, make the query's sum NaN for good. s: [keys, kVectors
// * lanes()], keys a multiple of 4.
template <int kVectors, class Weights>
HWY_NOINLINE void softmax_block(float* s, int32_t keys, float positive_scale, int bias, const Weights weights,
                                RunningSoftmax state) {
    const F32 d;
    const std::conditional_t<Weights::kInPairs, WeightExp, ScaledExp> biased_exp(positive_scale, bias);
    const ScaledExp plain_exp(positive_scale, 0);
    const VecF32 minus_infinity = hn::Set(d, kMinusInfinity);
    for (int v = 0; v < kVectors; ++v) {
        const int64_t n = lanes();
        const int64_t pitch = kVectors * n;
        float* const column = s + v * n;
        const VecF32 old_max = hn::Load(d, state.max + v * n);
        const VecF32 max = column_max(column, pitch, keys, old_max);
        // A query that has seen no key yet: exp(-inf - 0) is 0, where exp(-inf - -inf) would be NaN.
        const VecF32 anchor = hn::IfThenZeroElse(hn::Eq(max, minus_infinity), max);
        const VecF32 rescale = plain_exp(hn::Sub(old_max, anchor));
        VecF32 sum = hn::Mul(hn::Load(d, state.sum + v * n), rescale);
        for (int32_t j = 0; j < keys; j += 2) {
            const VecF32 p0 = biased_exp(hn::Sub(hn::Load(d, column + j * pitch), anchor));
            const VecF32 p1 = biased_exp(hn::Sub(hn::Load(d, column + (j + 1) * pitch), anchor));
            sum = hn::Add(hn::Add(sum, p0), p1);
            weights.store(p0, p1, j, pitch, column);
        }
        hn::Store(max, d, state.max + v * n);
        hn::Store(sum, d, state.sum + v * n);
        hn::Store(rescale, d, state.rescale + v * n);
    }
}

}  // namespace foveal::cpu::HWY_NAMESPACE
FOVEAL_AFTER_PAIRS();
HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// The same for one query, keys along the lanes; returns the rescale. s: [keys], keys a multiple of lanes().
template <class Round>
HWY_NOINLINE float softmax_row(float* s, int32_t keys, float positive_scale, int bias, Round round, float* running_max,
                               float* running_sum) {
    const F32 d;
    const auto step = static_cast<int32_t>(lanes());
    const ScaledExp biased_exp(positive_scale, bias);
    const ScaledExp plain_exp(positive_scale, 0);
    VecF32 maxima = hn::Set(d, *running_max);
    for (int32_t j = 0; j < keys; j += step) maxima = hn::Max(maxima, hn::Load(d, s + j));
    const VecF32 max = hn::MaxOfLanes(d, maxima);
    const VecF32 anchor = hn::IfThenZeroElse(hn::Eq(max, hn::Set(d, kMinusInfinity)), max);
    VecF32 sum = hn::Zero(d);
    for (int32_t j = 0; j < keys; j += step) {
        const VecF32 p = biased_exp(hn::Sub(hn::Load(d, s + j), anchor));
        sum = hn::Add(sum, p);
        hn::Store(round(p), d, s + j);
    }
    const float rescale = hn::GetLane(plain_exp(hn::Sub(hn::Set(d, *running_max), anchor)));
    *running_max = hn::GetLane(max);
    *running_sum = *running_sum * rescale + hn::GetLane(hn::SumOfLanes(d, sum));
    return rescale;
}

// How the second product wants probabilities of a type rounded: calls with(round).
template <class With>
HWY_INLINE auto with_rounding(DType dtype, With&& with) {
    switch (dtype) {
        case DType::bf16:
            return with(RoundMantissa(16, 0x1p-126f));
        case DType::f16:
            return with(RoundMantissa(13, 0x1p-14f));
        default:  // f32: validate() lets no other through
            return with(KeepMantissa());
    }
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
