// One task of the backward pass: a run of keys against every query that sees one of them, on the best SIMD target there
// is.
#pragma once

#include <cstdint>

#include "cpu/sum_order.hpp"
#include "cpu/tile.hpp"
#include "problem/mask.hpp"
#include "problem/strides.hpp"

namespace foveal::cpu {

// A head group whose gradients are asked. Queries are numbered as the group's, and computed in subtiles of
// subtile_queries(); arrays over them are padded to whole subtiles.
struct BackwardGroup {
    HeadGroup forward;  // out and lse are read
    const void* dout;   // [len_q, heads, d_v]
    const float* dlse;  // [heads, len_q] or null
    Strides dout_stride, dlse_stride;

    // Of each query, prepare_rows() fills them: the log-sum-exp, +inf where there is none and for padding, so that
    // exp(x - shift) is 0; and D.
    float* shift;
    float* delta;
    float* dq;               // [subtiles, dq_rows(d), subtile_queries()]: sums, without the scale; null: not asked
    double* dalibi;          // [heads]: sums over the task's pairs; null: not asked
    void* dk;                // [len_k, d] or null
    void* dv;                // [len_k, d_v] or null
    int64_t dk_row, dv_row;  // strides
    DType dk_dtype, dv_dtype;
};

// Floats of dq for each query of whole subtiles.
int64_t dq_rows(int64_t head_dim);

// Keys of a task: a multiple of kBlockKeys, that follows from the head dimensions alone.
int32_t backward_part_keys(int64_t head_dim, int64_t head_dim_v);

// shift and delta of queries [begin, end), begin a multiple of subtile_queries(). floats of workspace: those of
// backward_workspace_floats().
void prepare_rows(const BackwardGroup& group, int64_t begin, int64_t end, float* workspace);

// Floats of workspace that the functions of this file need.
int64_t backward_workspace_floats(int64_t head_dim, int64_t head_dim_v);

// dk and dv of the keys `keys`, and their share of dq, which is added when it is this part's turn. keys.begin: a
// multiple of kBlockKeys; no more than backward_part_keys() of them.
void compute_gradients(const BackwardGroup& group, Range keys, SumOrder& order, int32_t part, float* workspace);

// sums[j, i] += dx of key keys.begin + j and query i of the subtile. keys: of one block.
// sums: [kBlockKeys, subtile_queries()]
void add_score_gradients(const BackwardGroup& group, int64_t subtile, Range keys, float* sums, float* workspace);

// Queries [begin, end) of the sums in dq, scaled and rounded, to rows of a [len_q, heads, d] tensor of this type;
// begin is a multiple of subtile_queries().
void store_dq(const BackwardGroup& group, int64_t begin, int64_t end, DType dtype, void* dq, const Strides& stride,
              float* workspace);

// to[0 .. size) = from[0 .. size), rounded; from is aligned to 64 bytes and readable up to a multiple of 16 floats.
void store_floats(const float* from, int64_t size, DType dtype, void* to);

}  // namespace foveal::cpu
