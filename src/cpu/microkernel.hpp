// The two matrix products of a tile, on one register block each.
//
// Vectors run along the queries in both: a key's (or value's) element is broadcast from memory and multiplied with the
// same kVectors vectors of queries (or probabilities). So neither K nor V is ever transposed, every reduction of the
// softmax is vertical, and no remainder in d, d_v or the number of keys leaves the fast path.
#if defined(FOVEAL_CPU_MICROKERNEL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_MICROKERNEL_HPP
#undef FOVEAL_CPU_MICROKERNEL_HPP
#else
#define FOVEAL_CPU_MICROKERNEL_HPP
#endif

#include <algorithm>

#include "cpu/simd.hpp"

FOVEAL_BEFORE_PAIRS();
namespace foveal::cpu::HWY_NAMESPACE {

// The block is kRows (keys, or columns of V) x kVectors vectors of queries: 24 accumulators where there are 32
// registers, 12 where there are 16, and one broadcast and three vectors of queries beside them.
inline constexpr int kMaxVectors = 3;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kRows = 8;
#else
inline constexpr int kRows = 4;
#endif

// GCC 12.2 at -O2 keeps the accumulators in memory unless told to unroll the loops over them: d = 64 then runs at 0.31
// of the speed on AVX-512 and at 0.41 on AVX2; at -O3 the gain is 10 % and 3 %.
#define FOVEAL_UNROLL HWY_PRAGMA(GCC unroll 8)

// What a product takes of its operands at a time, a word of 32 bits in each lane: one float ...
struct Floats {
    using Word = float;
    static HWY_INLINE VecF32 multiply_add(VecF32 element, VecF32 queries, VecF32 sum) {
        return hn::MulAdd(element, queries, sum);
    }
};

// ... or two neighbours in bf16, whose products are exact in f32 and summed there: twice the products an instruction.
// Neither operand may hold numbers that the instruction takes for zero (subnormal ones), nor make products that it
// makes zero: OrdinaryPairs (pairs.hpp) says which may.
struct Pairs {
    using Word = uint32_t;
#if FOVEAL_TARGET_HAS_PAIRS
    static HWY_INLINE VecF32 multiply_add(VecU32 element, VecU32 queries, VecF32 sum) {
        const auto a = reinterpret_cast<__m512bh>(element.raw), b = reinterpret_cast<__m512bh>(queries.raw);
        return VecF32{_mm512_dpbf16_ps(sum.raw, a, b)};
    }
#endif
};

template <int kVectors>
struct RegisterBlock {
    VecF32 acc[kRows][kVectors];

    HWY_INLINE RegisterBlock() {}  // as FourColumns'

    HWY_INLINE void clear() {
        FOVEAL_UNROLL
        for (int r = 0; r < kRows; ++r) {
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(F32());
        }
    }

    // acc[r, :] += sum over depth of a[i, :] * b[i, r].
    // a: [depth, kVectors * lanes()]; b: [depth, kRows] with distances b_depth and b_row; in words of the product.
    template <class Product>
    HWY_INLINE void multiply(const typename Product::Word* HWY_RESTRICT a, const typename Product::Word* HWY_RESTRICT b,
                             int64_t b_depth, int64_t b_row, int64_t depth) {
        const hn::ScalableTag<typename Product::Word> d;
        const int64_t n = lanes();
        for (int64_t i = 0; i < depth; ++i) {
            hn::Vec<decltype(d)> queries[kVectors];
            FOVEAL_UNROLL
            for (int v = 0; v < kVectors; ++v) queries[v] = hn::Load(d, a + v * n);
            FOVEAL_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const auto element = hn::Set(d, b[r * b_row]);
                FOVEAL_UNROLL
                for (int v = 0; v < kVectors; ++v) acc[r][v] = Product::multiply_add(element, queries[v], acc[r][v]);
            }
            a += kVectors * n;
            b += b_depth;
        }
    }
};

// A score is summed in pieces of this many words, so that rounding errors grow with the root of d; a piece of the
// queries (6 KiB) stays in the L1 cache while the keys pass by.
inline constexpr int64_t kScorePiece = 32;

// s[j, :] = q^T k_j; keys is a multiple of kRows.
// q: [words, kVectors * lanes()]; k: [keys, words] with pitch; s: [keys, kVectors * lanes()]
template <class Product, int kVectors>
HWY_NOINLINE void score_keys(const typename Product::Word* q, const typename Product::Word* k, int64_t pitch,
                             int64_t words, int64_t keys, float* s) {
    const F32 d;
    for (int64_t first = 0; first < words; first += kScorePiece) {
        const int64_t depth = std::min(kScorePiece, words - first);
        for (int64_t j = 0; j < keys; j += kRows) {
            RegisterBlock<kVectors> block;
            block.clear();
            block.template multiply<Product>(q + first * kVectors * lanes(), k + j * pitch + first, 1, pitch, depth);
            FOVEAL_UNROLL
            for (int r = 0; r < kRows; ++r) {
                FOVEAL_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    float* const to = s + ((j + r) * kVectors + v) * lanes();
                    const VecF32 piece = block.acc[r][v];
                    hn::Store(first == 0 ? piece : hn::Add(hn::Load(d, to), piece), d, to);
                }
            }
        }
    }
}

// o[r, :] = o[r, :] * rescale + sum over keys of p[key, :] * v[key, r] for kRows columns of V, one key after the other:
// a block summed by itself and then added would round once more where its last key has all the weight.
// p: [words, kVectors * lanes()], a word one key or two; v: [words, kRows] with pitch; rescale: [kVectors * lanes()];
// o: [kRows, kVectors * lanes()]
template <class Product, int kVectors>
HWY_NOINLINE void accumulate_values(const typename Product::Word* p, const typename Product::Word* v, int64_t pitch,
                                    int64_t words, const float* rescale, float* o) {
    const F32 d;
    RegisterBlock<kVectors> block;
    FOVEAL_UNROLL
    for (int r = 0; r < kRows; ++r) {
        FOVEAL_UNROLL
        for (int i = 0; i < kVectors; ++i) {
            const VecF32 factor = hn::Load(d, rescale + i * lanes());
            block.acc[r][i] = hn::Mul(hn::Load(d, o + (r * kVectors + i) * lanes()), factor);
        }
    }
    block.template multiply<Product>(p, v, pitch, 1, words);
    FOVEAL_UNROLL
    for (int r = 0; r < kRows; ++r) {
        FOVEAL_UNROLL
        for (int i = 0; i < kVectors; ++i) hn::Store(block.acc[r][i], d, o + (r * kVectors + i) * lanes());
    }
}

// o *= rescale, of so many rows. o: [rows, kVectors * lanes()]; rescale: [kVectors * lanes()]
template <int kVectors>
HWY_NOINLINE void rescale_rows(const float* rescale, int64_t rows, float* o) {
    const F32 d;
    const VecF32 one = hn::Set(d, 1.0f);
    for (int v = 0; v < kVectors; ++v) {
        const VecF32 factor = hn::Load(d, rescale + v * lanes());
        if (hn::AllTrue(d, hn::Eq(factor, one))) continue;
        for (int64_t r = 0; r < rows; ++r) {
            float* const to = o + (r * kVectors + v) * lanes();
            hn::Store(hn::Mul(hn::Load(d, to), factor), d, to);
        }
    }
}

// Which keys count for which query: of keys first, first + 1, .. query i sees those in [begin[i], end[i]).
struct SeenKeys {
    int32_t first;
    const int32_t *begin, *end;  // [kVectors * lanes()]
};

// The same where values are NaN or infinite. P is 0 for a key that a query does not see, but 0 * NaN is NaN, so such
// products are left out: what some queries see must not reach others (contract 1.6 lets it reach their tile at most).
template <int kVectors>
HWY_NOINLINE void accumulate_seen_values(const float* p, const float* v, int64_t pitch, int64_t keys,
                                         const SeenKeys& seen, const float* rescale, float* o) {
    const F32 d;
    const I32 di;
    for (int i = 0; i < kVectors; ++i) {
        const auto begin = hn::Load(di, seen.begin + i * lanes()), end = hn::Load(di, seen.end + i * lanes());
        for (int r = 0; r < kRows; ++r) {
            float* const to = o + (r * kVectors + i) * lanes();
            VecF32 sum = hn::Mul(hn::Load(d, to), hn::Load(d, rescale + i * lanes()));
            for (int64_t j = 0; j < keys; ++j) {
                const auto key = hn::Set(di, seen.first + static_cast<int32_t>(j));
                const auto visible =
                    hn::AndNot(hn::VecFromMask(di, hn::Lt(key, begin)), hn::VecFromMask(di, hn::Lt(key, end)));
                const VecF32 more =
                    hn::MulAdd(hn::Set(d, v[j * pitch + r]), hn::Load(d, p + (j * kVectors + i) * lanes()), sum);
                sum = hn::IfThenElse(hn::RebindMask(d, hn::MaskFromVec(visible)), more, sum);
            }
            hn::Store(sum, d, to);
        }
    }
}

#undef FOVEAL_UNROLL

}  // namespace foveal::cpu::HWY_NAMESPACE
FOVEAL_AFTER_PAIRS();
#endif
