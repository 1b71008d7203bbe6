// Dropout in a warp's fragments (tile/fragment.hpp): which of a thread's scores are kept. The rule is
// problem/dropout.hpp; here is who draws which of its bits. Host and device share it.
//
// Where rows are queries, a block of bits is the thread's own: two neighbours of each of four eights, of one row. Where
// rows are keys (the gradients), a thread has two keys, eight apart, of each query, and a block has them and their
// neighbours, which the lane four further has: each of the two draws for half of the queries, and they exchange what
// they have found, a bit a score.
#pragma once

#include <cstdint>

#include "problem/dropout.hpp"
#include "problem/forward.hpp"
#include "sm90/tile/fragment.hpp"

// Loops over registers, which the device has to unroll; a host's compiler does as it likes.
#if defined(__CUDA_ARCH__)
#define FOVEAL_UNROLL _Pragma("unroll")
#else
#define FOVEAL_UNROLL
#endif

namespace foveal::sm90 {

// What a launch says of it.
struct Dropout {
    const uint64_t* state;  // [2]: seed, offset, on the device; null: nothing is dropped
    uint32_t threshold;
    float scale;  // 1 / (1 - p)

    static Dropout of(const ForwardProblem& problem, const ForwardPointers& pointers) {
        const uint32_t threshold = dropout_threshold(problem.dropout_p);
        return {threshold > 0 ? pointers.dropout_state : nullptr, threshold, dropout_scale(threshold)};
    }
};

inline constexpr int32_t kDropoutKeys = 32;                                   // that four blocks of bits serve
inline constexpr int32_t kDropoutEights = kDropoutKeys / Fragment::kColumns;  // of them, a word of a block each
inline constexpr int32_t kDropoutLane = Fragment::kRowLanes;                  // from a lane to its partner, bitwise

// The threshold beside itself, for both numbers of a word.
FOVEAL_HOST_DEVICE uint32_t threshold_pair(uint32_t threshold) { return threshold << 16 | threshold; }

// Which of a word's two numbers reach the threshold.
struct KeptPair {
    bool lower, upper;
};
FOVEAL_HOST_DEVICE KeptPair kept_pair(uint32_t numbers, uint32_t thresholds) {
#if defined(__CUDA_ARCH__)
    KeptPair kept;
    (void)__vibmax_u16x2(numbers, thresholds, &kept.upper, &kept.lower);  // VIMNMX, with both comparisons beside it
    return kept;
#else
    constexpr uint32_t kLower = kDropoutNumbers - 1;
    return {(numbers & kLower) >= (thresholds & kLower), numbers >> 16 >= thresholds >> 16};
#endif
}

// A pair of 16-bit numbers, of which those stay that are kept.
FOVEAL_HOST_DEVICE void drop(uint32_t& pair, KeptPair kept) {
    if (!kept.lower) pair &= 0xFFFF0000u;
    if (!kept.upper) pair &= 0x0000FFFFu;
}

// prmt: four of the bytes of a and b, of which the n-th digit of `digits` tells the n-th.
FOVEAL_HOST_DEVICE uint32_t chosen_bytes(uint32_t a, uint32_t b, uint32_t digits) {
#if defined(__CUDA_ARCH__)
    return __byte_perm(a, b, digits);
#else
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t chosen = 0;
    for (uint32_t n = 0; n < 4; ++n) chosen |= static_cast<uint32_t>(both >> 8 * (digits >> 4 * n & 7) & 0xFF) << 8 * n;
    return chosen;
#endif
}

// ---- rows are queries -----------------------------------------------------------------------------------------------

// The bits of a thread's row against the 32 keys from 32 * keys32 on: word n is of its columns in the n-th eight.
FOVEAL_HOST_DEVICE PhiloxBlock bits_of_row(PhiloxKey key, uint32_t head, int32_t row, int32_t keys32, int32_t lane) {
    return dropout_bits(key, head, static_cast<uint32_t>(row), static_cast<uint32_t>(keys32),
                        static_cast<uint32_t>(lane % Fragment::kRowLanes));
}

// P of the warp's queries against the keys from first_key on, a multiple of 32, as a wgmma takes it for its A: what is
// dropped becomes 0. query: the warp's first.
template <int32_t kKsteps>
FOVEAL_HOST_DEVICE void drop_weights(uint32_t (&p)[kKsteps][Fragment::kPairsOfOperand], PhiloxKey key,
                                     uint32_t thresholds, uint32_t head, int32_t query, int32_t first_key,
                                     int32_t lane) {
    constexpr int32_t kEights = kKsteps * 2;  // a kstep has 16 keys
    static_assert(kEights % kDropoutEights == 0);
    FOVEAL_UNROLL
    for (int32_t begin = 0; begin < kEights; begin += kDropoutEights) {
        FOVEAL_UNROLL
        for (int32_t r = 0; r < Fragment::kRows; ++r) {
            const PhiloxBlock block =
                bits_of_row(key, head, query + Fragment::first_row(lane) + r * Fragment::kRowDistance,
                            first_key / kDropoutKeys + begin / kDropoutEights, lane);
            FOVEAL_UNROLL
            for (int32_t n = 0; n < kDropoutEights; ++n) {
                const int32_t pair = Fragment::index(r, (begin + n) * Fragment::kColumns) / 2;
                drop(p[pair / Fragment::kPairsOfOperand][pair % Fragment::kPairsOfOperand],
                     kept_pair(block.word[n], thresholds));
            }
        }
    }
}

// ---- kept scores, a bit each ----------------------------------------------------------------------------------------

// Of a fragment of kColumns columns. kOfKeys: rows are keys, columns are queries.
template <int32_t kColumns, bool kOfKeys>
struct KeptScores;

// Bit i: that of register i.
template <int32_t kColumns>
struct KeptScores<kColumns, false> {
    static_assert(kColumns % kDropoutKeys == 0 && Fragment::size(kColumns) <= 32);
    uint32_t bits = 0;

    // Of register i?
    FOVEAL_HOST_DEVICE bool keeps(int32_t i) const { return (bits >> i & 1) != 0; }

    // query: the warp's first. first_key: of the columns, a multiple of 32.
    FOVEAL_HOST_DEVICE void draw(PhiloxKey key, uint32_t thresholds, uint32_t head, int32_t query, int32_t first_key,
                                 int32_t lane) {
        bits = 0;
        FOVEAL_UNROLL
        for (int32_t begin = 0; begin < kColumns; begin += kDropoutKeys) {
            FOVEAL_UNROLL
            for (int32_t r = 0; r < Fragment::kRows; ++r) {
                const PhiloxBlock block =
                    bits_of_row(key, head, query + Fragment::first_row(lane) + r * Fragment::kRowDistance,
                                (first_key + begin) / kDropoutKeys, lane);
                FOVEAL_UNROLL
                for (int32_t n = 0; n < kDropoutEights; ++n) {
                    const KeptPair kept = kept_pair(block.word[n], thresholds);
                    const int32_t i = Fragment::index(r, begin + n * Fragment::kColumns);
                    if (kept.lower) bits |= 1u << i;
                    if (kept.upper) bits |= 1u << (i + 1);
                }
            }
        }
    }
};

// Four bytes, one after the other: the even queries of the first key, its odd ones, and those of the second.
template <int32_t kColumns>
struct KeptScores<kColumns, true> {
    static_assert(kColumns <= 8 * Fragment::kColumns);
    uint32_t bits = 0;

    FOVEAL_HOST_DEVICE bool keeps(int32_t i) const {
        return (bits >> (16 * Fragment::row(i) + 8 * (i & 1) + Fragment::column_offset(i) / Fragment::kColumns) & 1) !=
               0;
    }

    // What the lane draws: of each key in turn, its own, and its partner's. key16: the warp's first key, a multiple of
    // 16; first_query: of the columns.
    static FOVEAL_HOST_DEVICE uint32_t drawn(PhiloxKey key, uint32_t thresholds, uint32_t head, int32_t key16,
                                             int32_t first_query, int32_t lane) {
        const bool odd = is_odd(lane), in_upper_half = key16 % kDropoutKeys != 0;
        const uint32_t lower_numbers = 0x5410, upper_numbers = 0x7632;
        const uint32_t own = odd ? upper_numbers : lower_numbers, others = odd ? lower_numbers : upper_numbers;
        const int32_t query = first_query + Fragment::first_column(lane) + (odd ? 1 : 0);
        uint32_t drawn = 0;
        FOVEAL_UNROLL
        for (int32_t c = 0; c < kColumns / Fragment::kColumns; ++c) {
            const PhiloxBlock block = dropout_bits(key, head, static_cast<uint32_t>(query + c * Fragment::kColumns),
                                                   static_cast<uint32_t>(key16 / kDropoutKeys),
                                                   static_cast<uint32_t>(Fragment::first_row(lane) / 2));
            const uint32_t first = in_upper_half ? block.word[2] : block.word[0],
                           second = in_upper_half ? block.word[3] : block.word[1];
            const KeptPair mine = kept_pair(chosen_bytes(first, second, own), thresholds),
                           theirs = kept_pair(chosen_bytes(first, second, others), thresholds);
            if (mine.lower) drawn |= 1u << c;
            if (theirs.lower) drawn |= 1u << (8 + c);
            if (mine.upper) drawn |= 1u << (16 + c);
            if (theirs.upper) drawn |= 1u << (24 + c);
        }
        return drawn;
    }

    // What the lane has drawn and what its partner, kDropoutLane further, has. A lane's own are of even queries, or of
    // odd ones.
    FOVEAL_HOST_DEVICE void join(uint32_t own, uint32_t partners, int32_t lane) {
        bits = chosen_bytes(own, partners, is_odd(lane) ? 0x2705 : 0x7250);
    }

   private:
    // Has the lane the odd keys, of neighbours?
    static FOVEAL_HOST_DEVICE bool is_odd(int32_t lane) { return Fragment::first_row(lane) % 2 != 0; }
};

// P, rounded, as a wgmma takes it for its A.
template <class Kept, int32_t kSteps>
FOVEAL_HOST_DEVICE void drop_operand(uint32_t (&p)[kSteps][Fragment::kPairsOfOperand], const Kept& kept) {
    FOVEAL_UNROLL
    for (int32_t pair = 0; pair < kSteps * Fragment::kPairsOfOperand; ++pair)
        drop(p[pair / Fragment::kPairsOfOperand][pair % Fragment::kPairsOfOperand],
             {kept.keeps(2 * pair), kept.keeps(2 * pair + 1)});
}

}  // namespace foveal::sm90

#undef FOVEAL_UNROLL
