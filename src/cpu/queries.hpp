// A subtile's queries, transposed: vectors run along the queries.
#if defined(FOVEAL_CPU_QUERIES_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_QUERIES_HPP
#undef FOVEAL_CPU_QUERIES_HPP
#else
#define FOVEAL_CPU_QUERIES_HPP
#endif

#include <algorithm>

#include "cpu/convert.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// A query's row as floats, `row` having room for whole vectors. load_row: of q's type.
inline void load_query(const HeadGroup& group, LoadRow load_row, const Query& query, float* row) {
    load_row(advance(group.q, group.q_dtype, query.offset(group.q_stride)), group.head_dim, row);
    if (group.q_descale == 1.0f) return;
    for (int64_t i = 0; i < group.head_dim; ++i) row[i] *= group.q_descale;
}

// Calls store(column, vector, four columns from there on) for all of them, times factor. rows: Shared's.
template <class Store>
HWY_INLINE void transpose_queries(const HeadGroup& group, const Subtile& subtile, LoadRow load_row, float factor,
                                  float* rows, Store&& store) {
    const int64_t pitch = pitch_of(group.head_dim);
    const VecF32 factors = hn::Set(F32(), factor);
    Query query(subtile.first_query, group.heads);
    for (int v = 0; v < subtile.vectors; ++v) {
        for (int64_t lane = 0; lane < lanes(); ++lane) {
            float* const row = rows + lane * pitch;
            if (v * lanes() + lane < subtile.queries) {
                load_query(group, load_row, query, row);
                query.next();
            } else {
                std::fill_n(row, pitch, 0.0f);
            }
        }
        for (int64_t i = 0; i < group.head_dim; i += kTransposeColumns) {
            FourColumns columns = load_columns(rows + i, pitch);
            for (VecF32& column : columns.column) column = hn::Mul(column, factors);
            store(i, v, columns);
        }
    }
}

inline void load_queries(const HeadGroup& group, const Subtile& subtile, LoadRow load_row, float factor, float* rows) {
    transpose_queries(group, subtile, load_row, factor, rows, [&](int64_t i, int v, const FourColumns& columns) {
        for (int64_t c = 0; c < kTransposeColumns; ++c)
            hn::Store(columns.column[c], F32(), subtile.q + ((i + c) * subtile.vectors + v) * lanes());
    });
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
