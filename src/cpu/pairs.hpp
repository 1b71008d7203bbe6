// Queries, keys and values in bf16 as the products that take two at a time read them (microkernel.hpp, Pairs): words of
// two numbers, the first in the lower half.
#if defined(FOVEAL_CPU_PAIRS_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_PAIRS_HPP
#undef FOVEAL_CPU_PAIRS_HPP
#else
#define FOVEAL_CPU_PAIRS_HPP
#endif

#include <algorithm>

#include "cpu/key_rows.hpp"
#include "cpu/pack.hpp"
#include "cpu/queries.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {
#if FOVEAL_TARGET_HAS_PAIRS

// Whether all numbers are zero, or finite and 2^-60 at least. The products of such with each other, and with
// probabilities of 2^-60 and more, are no subnormal numbers, which the instruction takes, and makes, for zero.
class OrdinaryPairs {
   public:
    HWY_INLINE OrdinaryPairs() : all_(hn::Eq(hn::Zero(D16()), hn::Zero(D16()))) {}  // written out: see FourColumns
    HWY_INLINE void look_at(VecU32 pairs) {
        const D16 d;
        const auto magnitude = hn::And(hn::BitCast(d, pairs), hn::Set(d, 0x7FFF));
        const auto above_least = hn::Sub(magnitude, hn::Set(d, kLeast));  // below it: more than any
        const auto in_range = hn::Lt(above_least, hn::Set(d, kInfinity - kLeast));
        all_ = hn::And(all_, hn::Or(in_range, hn::Eq(magnitude, hn::Zero(d))));
    }
    HWY_INLINE bool all() const { return hn::AllTrue(D16(), all_); }

   private:
    using D16 = hn::Repartition<uint16_t, U32>;
    static constexpr uint16_t kLeast = (127 - 60) << 7;
    static constexpr uint16_t kInfinity = 0x7F80;
    hn::Mask<D16> all_;
};

// Of queries in bf16, for a factor of 1, 0 or -1. Are all of them ordinary?
inline bool load_query_pairs(const HeadGroup& group, const Subtile& subtile, LoadRow load_row, float factor,
                             float* rows) {
    OrdinaryPairs ordinary;
    transpose_queries(group, subtile, load_row, factor, rows, [&](int64_t i, int v, const FourColumns& columns) {
        for (int64_t c = 0; c < kTransposeColumns; c += 2) {
            const VecU32 first = hn::BitCast(U32(), columns.column[c]);
            const VecU32 second = hn::BitCast(U32(), columns.column[c + 1]);
            const VecU32 pairs = hn::Or(hn::ShiftRight<16>(first), hn::And(second, hn::Set(U32(), 0xFFFF0000)));
            ordinary.look_at(pairs);
            hn::Store(pairs, U32(), subtile.q_pairs + ((i + c) / 2 * subtile.vectors + v) * lanes());
        }
    });
    return ordinary.all();
}

// Rows of queries that are loaded, each word two neighbours, transposed; a factor of 1, 0 or -1 on them. Are all
// numbers ordinary?
// rows: [vectors * lanes(), columns] with pitch_of(columns); to: [columns / 2, vectors * lanes()]
inline bool transpose_row_pairs(const float* rows, int64_t columns, int vectors, float factor, uint32_t* to) {
    OrdinaryPairs ordinary;
    const VecF32 factors = hn::Set(F32(), factor);
    for (int v = 0; v < vectors; ++v) {
        for (int64_t i = 0; i < columns; i += kTransposeColumns) {
            const FourColumns four = load_columns(rows + v * lanes() * pitch_of(columns) + i, pitch_of(columns));
            for (int64_t c = 0; c < kTransposeColumns; c += 2) {
                const VecU32 first = hn::BitCast(U32(), hn::Mul(four.column[c], factors));
                const VecU32 second = hn::BitCast(U32(), hn::Mul(four.column[c + 1], factors));
                const VecU32 pairs = hn::Or(hn::ShiftRight<16>(first), hn::And(second, hn::Set(U32(), 0xFFFF0000)));
                ordinary.look_at(pairs);
                hn::Store(pairs, U32(), to + ((i + c) / 2 * vectors + v) * lanes());
            }
        }
    }
    return ordinary.all();
}

// Rows are packed up to a multiple of it: as many as a register block takes, or a product of AMX.
inline constexpr int32_t kPairRows = std::max<int32_t>(kRows, kAmxKeys);

// Rows of K, each word two neighbours; which rows are zeros: as in pack_rows(). Are all numbers ordinary?
// to: [kBlockKeys, columns / 2] with pairs_pitch_of(columns)
template <class Rows>
bool pack_key_pairs(const Rows& from, int64_t columns, const BlockOfRows& rows, uint32_t* to) {
    const hn::Repartition<uint16_t, U32> d;
    const int64_t pitch = pairs_pitch_of(columns);
    const Range filled = rows.filled();
    OrdinaryPairs ordinary;
    std::fill(to, to + filled.begin * pitch, 0u);
    for (int64_t j = filled.begin; j < filled.end; ++j) {
        const auto* const row = reinterpret_cast<const uint16_t*>(from.row(rows.first + static_cast<int32_t>(j)));
        for (int64_t c = 0; c < columns; c += 2 * lanes()) {
            const auto there = hn::FirstN(d, static_cast<size_t>(columns - c));
            const VecU32 pairs = hn::BitCast(U32(), hn::MaskedLoad(there, d, row + c));
            ordinary.look_at(pairs);
            hn::Store(pairs, U32(), to + j * pitch + c / 2);
        }
    }
    std::fill(to + filled.end * pitch, to + round_up(rows.count(), kPairRows) * pitch, 0u);
    return ordinary.all();
}

// Rows of V, each word two numbers of a column, from row 2 i and row 2 i + 1.
// to: [kBlockKeys / 2, columns] with pitch_of(columns)
template <class Rows>
bool pack_value_pairs(const Rows& from, int64_t columns, const BlockOfRows& rows, uint32_t* to) {
    const hn::Rebind<uint16_t, U32> d;
    const int64_t pitch = pitch_of(columns);
    const Range filled = rows.filled();
    OrdinaryPairs ordinary;
    for (int64_t j = 0; j < round_up(rows.count(), kPairRows); j += 2) {
        const auto row = [&](int64_t i) {
            const bool is_filled = i >= filled.begin && i < filled.end;
            return is_filled ? reinterpret_cast<const uint16_t*>(from.row(rows.first + static_cast<int32_t>(i)))
                             : nullptr;
        };
        const uint16_t *const first = row(j), *const second = row(j + 1);
        const auto load = [&](const uint16_t* of, int64_t c) {
            if (of == nullptr) return hn::Zero(U32());
            const auto there = hn::FirstN(d, static_cast<size_t>(columns - c));
            return hn::PromoteTo(U32(), hn::MaskedLoad(there, d, of + c));
        };
        for (int64_t c = 0; c < columns; c += lanes()) {
            const VecU32 pairs = hn::Or(load(first, c), hn::ShiftLeft<16>(load(second, c)));
            ordinary.look_at(pairs);
            hn::Store(pairs, U32(), to + j / 2 * pitch + c);
        }
    }
    return ordinary.all();
}

// 16 rows of 16 words become columns.
HWY_INLINE void transpose_words(__m512i (&rows)[16]) {
    __m512i pairs[16], fours[16];
    HWY_PRAGMA(GCC unroll 8)
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    HWY_PRAGMA(GCC unroll 4)
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // Of fours[4 g + c] each 128 bits, the n-th, have column 4 n + c of rows 4 g to 4 g + 3.
    constexpr int kEven = 0x88, kOdd = 0xDD;  // of both operands
    HWY_PRAGMA(GCC unroll 4)
    for (int c = 0; c < 4; ++c) {
        const __m512i even = _mm512_shuffle_i32x4(fours[c], fours[4 + c], kEven);
        const __m512i odd = _mm512_shuffle_i32x4(fours[c], fours[4 + c], kOdd);
        const __m512i later_even = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], kEven);
        const __m512i later_odd = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], kOdd);
        rows[c] = _mm512_shuffle_i32x4(even, later_even, kEven);
        rows[4 + c] = _mm512_shuffle_i32x4(odd, later_odd, kEven);
        rows[8 + c] = _mm512_shuffle_i32x4(even, later_even, kOdd);
        rows[12 + c] = _mm512_shuffle_i32x4(odd, later_odd, kOdd);
    }
}

// The packed pairs of V as amx_accumulate_values() reads them.
inline HWY_NOINLINE void tile_value_pairs(const uint32_t* pairs, int64_t columns, const BlockOfRows& rows,
                                          uint32_t* to) {
    const int64_t pitch = pitch_of(columns);
    for (int64_t c = 0; c < columns; c += kAmxRows, to += kValueTiles * kAmxTile) {
        for (int64_t word = 0; word < round_up(rows.count(), kPairRows) / 2; word += kAmxWords) {
            __m512i words[16];
            HWY_PRAGMA(GCC unroll 16)
            for (int64_t i = 0; i < 16; ++i) words[i] = _mm512_load_si512(pairs + (word + i) * pitch + c);
            transpose_words(words);
            HWY_PRAGMA(GCC unroll 16)
            for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to + word * kAmxRows + i * kAmxWords, words[i]);
        }
    }
}

#else
inline bool load_query_pairs(const HeadGroup&, const Subtile&, LoadRow, float, float*) { return false; }
inline bool transpose_row_pairs(const float*, int64_t, int, float, uint32_t*) { return false; }
template <class Rows>
bool pack_key_pairs(const Rows&, int64_t, const BlockOfRows&, uint32_t*) {
    return false;
}
template <class Rows>
bool pack_value_pairs(const Rows&, int64_t, const BlockOfRows&, uint32_t*) {
    return false;
}
inline void tile_value_pairs(const uint32_t*, int64_t, const BlockOfRows&, uint32_t*) {}
#endif
}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
