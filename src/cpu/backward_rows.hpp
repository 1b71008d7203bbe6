// What is known of a query before any score is: its log-sum-exp and D. The product of its dout and its output is summed
// as score_keys() sums: so it is, to the bit, that of dout and the value of a key which has all the row's weight, and
// the difference of the two is 0.
#if defined(FOVEAL_CPU_BACKWARD_ROWS_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_BACKWARD_ROWS_HPP
#undef FOVEAL_CPU_BACKWARD_ROWS_HPP
#else
#define FOVEAL_CPU_BACKWARD_ROWS_HPP
#endif

#include <algorithm>
#include <limits>

#include "cpu/backward_tile.hpp"
#include "cpu/convert.hpp"
#include "cpu/microkernel.hpp"
#include "cpu/pairs.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "cpu/transpose.hpp"

FOVEAL_BEFORE_PAIRS();
namespace foveal::cpu::HWY_NAMESPACE {

// a, b: [lanes(), columns] with pitch, zeros behind their end up to a vector.
inline VecF32 multiply_rows(const float* a, const float* b, int64_t pitch, int64_t columns) {
    VecF32 sum = hn::Zero(F32());
    for (int64_t first = 0; first < columns; first += kScorePiece) {
        VecF32 piece = hn::Zero(F32());
        const int64_t end = std::min(first + kScorePiece, columns);
        for (int64_t c = first; c < end; c += kTransposeColumns) {
            const FourColumns of_a = load_columns(a + c, pitch), of_b = load_columns(b + c, pitch);
            for (int64_t n = 0; n < std::min(kTransposeColumns, end - c); ++n)
                piece = Floats::multiply_add(of_b.column[n], of_a.column[n], piece);
        }
        sum = first == 0 ? piece : hn::Add(sum, piece);
    }
    return sum;
}

#if FOVEAL_TARGET_HAS_PAIRS
HWY_INLINE VecU32 pair_of(VecF32 first, VecF32 second) {
    return hn::Or(hn::ShiftRight<16>(hn::BitCast(U32(), first)),
                  hn::And(hn::BitCast(U32(), second), hn::Set(U32(), 0xFFFF0000)));
}

// The same of rows in bf16, as score_keys<Pairs>() sums. Are all numbers ordinary? Else the sum counts nothing.
inline bool multiply_row_pairs(const float* a, const float* b, int64_t pitch, int64_t columns, VecF32& sum) {
    OrdinaryPairs ordinary;
    sum = hn::Zero(F32());
    for (int64_t first = 0; first < columns; first += 2 * kScorePiece) {
        VecF32 piece = hn::Zero(F32());
        const int64_t end = std::min(first + 2 * kScorePiece, columns);
        for (int64_t c = first; c < end; c += kTransposeColumns) {
            const FourColumns of_a = load_columns(a + c, pitch), of_b = load_columns(b + c, pitch);
            for (int64_t n = 0; n < std::min(kTransposeColumns, end - c); n += 2) {
                const VecU32 pair_a = pair_of(of_a.column[n], of_a.column[n + 1]);
                const VecU32 pair_b = pair_of(of_b.column[n], of_b.column[n + 1]);
                ordinary.look_at(pair_a);
                ordinary.look_at(pair_b);
                piece = Pairs::multiply_add(pair_b, pair_a, piece);
            }
        }
        sum = first == 0 ? piece : hn::Add(sum, piece);
    }
    return ordinary.all();
}
#else
inline bool multiply_row_pairs(const float*, const float*, int64_t, int64_t, VecF32&) { return false; }
#endif

}  // namespace foveal::cpu::HWY_NAMESPACE
FOVEAL_AFTER_PAIRS();
HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Rows of `queries` queries from `first` on, as floats; of those without a log-sum-exp zeros.
inline void load_rows_of(const BackwardGroup& group, const void* from, const Strides& stride, int64_t first,
                         int64_t queries, float* to) {
    const HeadGroup& of = group.forward;
    const LoadRow load = row_loader(of.dtype);
    const int64_t pitch = pitch_of(of.head_dim_v);
    Query query(first, of.heads);
    for (int64_t i = 0; i < lanes(); ++i, to += pitch) {
        if (i < queries && group.shift[first + i] != std::numeric_limits<float>::infinity())
            load(advance(from, of.dtype, query.offset(stride)), of.head_dim_v, to);
        else
            std::fill_n(to, pitch, 0.0f);
        query.next();
    }
}

// Of a vector of queries.
inline void prepare_vector(const BackwardGroup& group, int64_t first, float* memory) {
    const HeadGroup& of = group.forward;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const int64_t queries = std::min(lanes(), of.queries() - first), pitch = pitch_of(of.head_dim_v);
    Query query(first, of.heads);
    for (int64_t i = 0; i < lanes(); ++i) {
        const float lse = i < queries ? of.lse[query.offset(of.lse_stride)] : -kInfinity;
        group.shift[first + i] = lse == -kInfinity ? kInfinity : lse;
        if (i < queries) query.next();
    }
    float* const out = memory + lanes() * pitch;
    load_rows_of(group, group.dout, group.dout_stride, first, queries, memory);
    load_rows_of(group, of.out, of.out_stride, first, queries, out);
    VecF32 products;
    if (of.dtype != DType::bf16 || !has_bf16_pairs() ||
        !multiply_row_pairs(memory, out, pitch, of.head_dim_v, products))
        products = multiply_rows(memory, out, pitch, of.head_dim_v);
    hn::Store(products, F32(), group.delta + first);
    if (group.dlse == nullptr) return;
    query = Query(first, of.heads);
    for (int64_t i = 0; i < queries; ++i, query.next())
        if (group.shift[first + i] != kInfinity) group.delta[first + i] -= group.dlse[query.offset(group.dlse_stride)];
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
