// Which weights dropout drops, of a vector of queries or of one query (src/problem/dropout.hpp has the rule).
#if defined(FOVEAL_CPU_DROPOUT_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_DROPOUT_HPP
#undef FOVEAL_CPU_DROPOUT_HPP
#else
#define FOVEAL_CPU_DROPOUT_HPP
#endif

#include <algorithm>

#include "cpu/simd.hpp"
#include "problem/dropout.hpp"
#include "problem/mask.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Of products of 32-bit numbers, the two halves.
struct WideProduct {
    VecU32 low, high;
};

HWY_INLINE WideProduct multiply_wide(VecU32 x, uint32_t factor) {
    const U32 d;
#if HWY_TARGET == HWY_SCALAR
    const uint64_t product = static_cast<uint64_t>(hn::GetLane(x)) * factor;
    return {hn::Set(d, static_cast<uint32_t>(product)), hn::Set(d, static_cast<uint32_t>(product >> 32))};
#else
    const hn::RepartitionToWide<U32> wide;
    const VecU32 factors = hn::Set(d, factor);
    const auto even = hn::MulEven(x, factors);
    const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, x))), factors);
    return {hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even)),
            hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even)))};
#endif
}

struct PhiloxVectors {
    VecU32 word[4];
};

// philox(), for the counters of each lane.
HWY_INLINE PhiloxVectors philox_vectors(VecU32 c0, VecU32 c1, VecU32 c2, PhiloxKey key) {
    const U32 d;
    VecU32 c3 = hn::Zero(d);
    for (int32_t round = 0; round < kPhiloxRounds; ++round) {
        const WideProduct product0 = multiply_wide(c0, kPhiloxMultiplier0);
        const WideProduct product1 = multiply_wide(c2, kPhiloxMultiplier1);
        c0 = hn::Xor(hn::Xor(product1.high, c1), hn::Set(d, key.word[0]));
        c1 = product1.low;
        c2 = hn::Xor(hn::Xor(product0.high, c3), hn::Set(d, key.word[1]));
        c3 = product0.low;
        key.word[0] += kPhiloxStep0;
        key.word[1] += kPhiloxStep1;
    }
    return {{c0, c1, c2, c3}};
}

// Of a tile's queries.
struct DroppedOfQueries {
    PhiloxKey key;
    uint32_t threshold;
    const uint32_t *row, *head;  // [kVectors * lanes()]
};

// Calls visit(j, even, odd) for each two neighbours j and j + 1 of keys first ... first + keys - 1, j even: all bits of
// a lane are set where the lane's query, of vector v, drops key j (even) or j + 1 (odd). first and keys are even.
template <class Visit>
HWY_INLINE void for_dropped_pairs(const DroppedOfQueries& of, int v, int32_t first, int32_t keys, Visit&& visit) {
    const U32 d;
    const I32 di;
    const VecU32 row = hn::Load(d, of.row + v * lanes()), head = hn::Load(d, of.head + v * lanes());
    const VecU32 lower_half = hn::Set(d, kDropoutNumbers - 1);
    const auto threshold = hn::Set(di, static_cast<int32_t>(of.threshold));
    const auto dropped = [&](VecU32 numbers) {
        return hn::BitCast(d, hn::VecFromMask(di, hn::Lt(hn::BitCast(di, numbers), threshold)));
    };
    for (int32_t some = first / 32 * 32; some < first + keys; some += 32) {
        for (int32_t pair = 0; pair < 4; ++pair) {
            const auto counter = static_cast<uint32_t>(some / 32 * 4 + pair);
            const PhiloxVectors bits = philox_vectors(hn::Set(d, counter), row, head, of.key);
            for (int32_t eight = 0; eight < 4; ++eight) {
                const int32_t j = some + 8 * eight + 2 * pair;
                if (j < first || j >= first + keys) continue;
                const VecU32 word = bits.word[eight];
                visit(j, dropped(hn::And(word, lower_half)), dropped(hn::ShiftRight<16>(word)));
            }
        }
    }
}

// Weights that are dropped become 0. p: [keys, kVectors * lanes()], first_key the number of its first
template <int kVectors>
HWY_NOINLINE void drop_weights(float* p, int32_t first_key, int32_t keys, const DroppedOfQueries& of) {
    const F32 d;
    for (int v = 0; v < kVectors; ++v) {
        for_dropped_pairs(of, v, first_key, keys, [&](int32_t j, VecU32 even, VecU32 odd) {
            float* const row = p + ((j - first_key) * kVectors + v) * lanes();
            float* const next = row + kVectors * lanes();
            hn::Store(hn::AndNot(hn::BitCast(d, even), hn::Load(d, row)), d, row);
            hn::Store(hn::AndNot(hn::BitCast(d, odd), hn::Load(d, next)), d, next);
        });
    }
}

// The same in bf16, a word of two neighbours. p: [keys / 2, kVectors * lanes()]
template <int kVectors>
HWY_NOINLINE void drop_weight_pairs(uint32_t* p, int32_t first_key, int32_t keys, const DroppedOfQueries& of) {
    const U32 d;
    for (int v = 0; v < kVectors; ++v) {
        for_dropped_pairs(of, v, first_key, keys, [&](int32_t j, VecU32 even, VecU32 odd) {
            uint32_t* const word = p + ((j - first_key) / 2 * kVectors + v) * lanes();
            const VecU32 dropped = hn::Or(hn::ShiftRight<16>(even), hn::ShiftLeft<16>(odd));
            hn::Store(hn::AndNot(dropped, hn::Load(d, word)), d, word);
        });
    }
}

// The same of one query. p: of keys first_key, first_key + 1, ..; those in `some` are looked at
inline void drop_row(float* p, int32_t first_key, Range some, PhiloxKey key, uint32_t threshold, uint32_t head,
                     uint32_t row) {
    for (int32_t j = some.begin; j < some.end;) {
        const int32_t of_32 = (first_key + j) % 32, end = std::min(some.end, j + 32 - of_32);
        const auto keys32 = static_cast<uint32_t>((first_key + j) / 32);
        uint32_t kept = dropout_kept_keys(key, threshold, head, row, keys32) >> of_32;
        for (; j < end; ++j, kept >>= 1)
            if (kept % 2 == 0) p[j] = 0;
    }
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
