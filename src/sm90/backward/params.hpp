// What a backward launch hands to its three kernels, besides the tensor maps.
#pragma once

#include <cstdint>

#include "problem/strides.hpp"
#include "sm90/backward/schedule.hpp"
#include "sm90/backward/sequences.hpp"
#include "sm90/scores/options.hpp"

struct CUtensorMap_st;  // of cuda.h, which plans do without

namespace foveal::sm90 {

// Intermediate results, in the caller's workspace. The first kernel sets all of them, control words included.
struct BackwardWorkspace {
    float* dq_sums;     // [slots, h_q, 2 warpgroups, dq_elements]: in the order of the warpgroup's registers
    float* neg_lse;     // [slots, h_q, 64]: -lse / scale (with options -lse); behind a sequence's end -inf
    float* neg_delta;   // [slots, h_q, 64]: dlse - rowsum(dO * O)
    float* sink_parts;  // [slots, h_q]: of the sinks' gradient
    int32_t* arrivals;  // [slots, h_q, 2]: tasks whose sums have arrived in dq_sums
    BackwardTask* tasks;
    int32_t* task_count;  // of this call
    int32_t* next_task;   // the first that no CTA has taken
};

// A written tensor; null: not asked.
struct BackwardOut {
    void* data;  // 16-bit elements
    int64_t batch_stride, row_stride, head_stride;
};

// A tensor whose rows are read.
struct BackwardIn {
    const void* data;
    int64_t batch_stride, row_stride, head_stride;
};

// What the variant with options reads.
struct BackwardOptions {
    float scale;
    float softcap;              // 0: none
    float cap_argument;         // scale / softcap
    const float* alibi_slopes;  // [h_q] or [b, h_q], or null
    int64_t alibi_batch_stride, alibi_head_stride;
    ScoreMatrix bias;
    bool bias_is_f32;  // else of q's type
    ScoreMatrix mask;  // bytes
};

struct BackwardParams {
    BackwardSequences sequences;
    BackwardWorkspace workspace;
    int32_t list_ctas;  // of the first kernel, for each sequence: kListCtas, or 0 where there is no list
    int32_t heads_q, heads_k, heads_per_kv;
    int32_t mapped_rows_q, mapped_rows_k;  // rows of a sequence (varlen: of all) that the tensor maps reach
    int32_t head_dim, head_dim_v;          // columns that exist
    float scale, scale_log2;               // scale * log2(e)
    float inverse_scale;                   // with options 1: there scores start at 0

    BackwardIn out, dout;
    const float *lse, *dlse;  // dlse: or null
    int64_t lse_batch_stride, lse_head_stride, dlse_batch_stride, dlse_head_stride;
    BackwardOut dq, dk, dv;
    const float* sinks;  // [h_q] or null
    float* dsinks;       // [h_q] or null: not asked
    int64_t sinks_head_stride, dsinks_head_stride;
    BackwardOptions options;

    // The index of a query tile of a head in the workspace's arrays.
    FOVEAL_HOST_DEVICE int64_t unit(int32_t slot, int32_t head) const { return int64_t{slot} * heads_q + head; }
};

// The tensors as the copy engine sees them.
struct BackwardMaps {
    const CUtensorMap_st &q, &k, &v, &dout;
};

}  // namespace foveal::sm90
