// What a task of the backward pass holds, and where that lies in the thread's workspace.
#if defined(FOVEAL_CPU_BACKWARD_MEMORY_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEAL_CPU_BACKWARD_MEMORY_HPP
#undef FOVEAL_CPU_BACKWARD_MEMORY_HPP
#else
#define FOVEAL_CPU_BACKWARD_MEMORY_HPP
#endif

#include <algorithm>

#include "cpu/microkernel.hpp"
#include "cpu/simd.hpp"
#include "cpu/subtile.hpp"
#include "cpu/tile.hpp"
#include "cpu/transpose.hpp"

HWY_BEFORE_NAMESPACE();
namespace foveal::cpu::HWY_NAMESPACE {

// Blocks of keys of a task at most. Keys, values and their gradients stay in half an L2 cache of 1 MiB, if the head
// dimensions let at least one block of keys be so.
inline constexpr int32_t kMostBlocks = 4;
inline int32_t part_keys(int64_t head_dim, int64_t head_dim_v) {
    constexpr int64_t kPartFloats = int64_t{1} << 17;
    const int64_t blocks = kPartFloats / (2 * (head_dim + head_dim_v) * kBlockKeys);
    return static_cast<int32_t>(std::clamp<int64_t>(blocks, 1, kMostBlocks)) * kBlockKeys;
}

inline int64_t rows_of_dq(int64_t head_dim) { return round_up(head_dim, kRows); }

// What a task works in.
struct BackwardMemory {
    float *k, *v;         // [part keys, d | d_v] with pitch_of(it)
    float *dk, *dv;       // likewise, sums
    float *q, *dout;      // [queries_per_subtile(), d | d_v] with pitch_of(it)
    float* q_columns;     // [d rounded up to kTransposeColumns, vectors * lanes()], times the scaling's query_factor
    float* dout_columns;  // [d_v, ..] likewise
    // The same in bf16, words of two neighbours, for the products that give scores and dp: those of dk, dv and dq are
    // of floats.
    uint32_t *k_pairs, *v_pairs;  // [part keys, d / 2 | d_v / 2] with pairs_pitch_of(d | d_v)
    uint32_t *q_pair_columns, *dout_pair_columns;
    float* dq;                // [d rounded up to kRows, vectors * lanes()]
    float *scores, *dscores;  // [kBlockKeys, vectors * lanes()]
    float* capped;            // likewise: the scores behind the softcap
    float* rows;              // [lanes(), max(d, d_v, kBlockKeys)] with pitch_of(it)
    float* ones;              // [queries_per_subtile()]
    float* distances;         // [queries_per_subtile()]: sums of dx * |i + off - j|
    int32_t *key_begin, *key_end, *position;
    float* slope;
    uint32_t *dropout_row, *dropout_head;
};

inline BackwardMemory take_memory(Workspace& workspace, int64_t head_dim, int64_t head_dim_v) {
    const int64_t keys = part_keys(head_dim, head_dim_v), queries = queries_per_subtile();
    BackwardMemory m;
    m.k = workspace.take(keys * pitch_of(head_dim));
    m.v = workspace.take(keys * pitch_of(head_dim_v));
    m.dk = workspace.take(keys * pitch_of(head_dim));
    m.dv = workspace.take(keys * pitch_of(head_dim_v));
    m.q = workspace.take(queries * pitch_of(head_dim));
    m.dout = workspace.take(queries * pitch_of(head_dim_v));
    m.q_columns = workspace.take(round_up(head_dim, kTransposeColumns) * queries);
    m.dout_columns = workspace.take(round_up(head_dim_v, kTransposeColumns) * queries);
    const int64_t has_pairs = FOVEAL_TARGET_HAS_PAIRS;
    m.k_pairs = workspace.take_u32(has_pairs * keys * pairs_pitch_of(head_dim));
    m.v_pairs = workspace.take_u32(has_pairs * keys * pairs_pitch_of(head_dim_v));
    m.q_pair_columns = workspace.take_u32(has_pairs * round_up(head_dim, kTransposeColumns) / 2 * queries);
    m.dout_pair_columns = workspace.take_u32(has_pairs * round_up(head_dim_v, kTransposeColumns) / 2 * queries);
    m.dq = workspace.take(rows_of_dq(head_dim) * queries);
    m.scores = workspace.take(kBlockKeys * queries);
    m.dscores = workspace.take(kBlockKeys * queries);
    m.capped = workspace.take(kBlockKeys * queries);
    m.rows = workspace.take(lanes() * pitch_of(std::max({head_dim, head_dim_v, int64_t{kBlockKeys}})));
    m.ones = workspace.take(queries);
    m.distances = workspace.take(queries);
    m.key_begin = workspace.take_i32(queries);
    m.key_end = workspace.take_i32(queries);
    m.position = workspace.take_i32(queries);
    m.slope = workspace.take(queries);
    m.dropout_row = workspace.take_u32(queries);
    m.dropout_head = workspace.take_u32(queries);
    return m;
}

}  // namespace foveal::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
