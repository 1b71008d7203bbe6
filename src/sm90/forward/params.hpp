// What a forward launch hands to its kernel, besides the tensor maps.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <numbers>

#include "problem/forward.hpp"
#include "sm90/forward/schedule.hpp"
#include "sm90/scores/softcap.hpp"

namespace foveal::sm90 {

inline constexpr double kLog2E = std::numbers::log2e;  // exponents are in base 2

// A matrix with a value for each score, [b|1, h_q|1, s_q, s_k]; strides in elements, 0 where a dimension is shared.
struct ScoreMatrix {
    const void* data;  // null: absent
    int64_t batch_stride, row_stride, head_stride;
    bool in_vectors;  // every vector (matrix_vectors.hpp) of a row is in the matrix and aligned
};

// What only variants that change the scores read (scores.cuh).
struct ScoreOptions {
    float scale;
    float softcap;       // 0: none
    float cap_argument;  // scale / softcap
    SoftcapPolynomial cap;
    bool last_keys_first;       // K/V blocks in descending order
    const float* alibi_slopes;  // [h_q] or [b, h_q], or null
    int64_t alibi_batch_stride;
    bool only_alibi;  // no other option of the scores
    ScoreMatrix bias;
    bool bias_is_f32;  // else of q's type
    ScoreMatrix mask;  // bytes
};

struct ForwardParams {
    int32_t batch;
    int32_t rows_q;         // dense: s_q; varlen: total_q
    int32_t rows_k;         // dense: s_k; varlen: total_k
    int32_t mapped_rows_k;  // rows of K and V that the tensor map reaches: at least 1
    int32_t heads_k;
    int32_t heads_per_kv;       // query heads a KV head
    int32_t heads_log2;         // of them, that tiles may hold packed, as a power of two (schedule.hpp)
    int32_t least_saved_tiles;  // varlen: as in ForwardPlan
    Window window;
    float scale_log2;  // scale * log2(e)
    uint32_t zero;     // 0, which the compiler does not know (instruction_order.cuh)

    FastTileOrder order;  // dense; varlen: last_rows_first only
    Divisor by_heads_k;
    int32_t section_keys;  // varlen: keys of one head's K and V that a section of a sequence's order may hold
    // Varlen: CTAs that get neighbouring tiles together (balance.cuh); 0: none do. And the KV units whose heads are
    // whole bundles.
    int32_t bundle;
    Divisor bundle_units;
    int32_t packed_section_keys;  // varlen: up to so many keys are a sequence's heads one section
    int32_t passed_over_blocks;   // as in ForwardPlan

    const int32_t* cu_seqlens_q;  // [b + 1] or null: dense
    const int32_t* cu_seqlens_k;  // [b + 1] or null
    const int32_t* seqused_q;     // [b] or null
    const int32_t* seqused_k;     // [b] or null

    void* out;  // [b, s_q, h_q, d_v] or [total_q, h_q, d_v], 16-bit elements
    int64_t out_batch_stride, out_row_stride, out_head_stride;
    float* lse;  // [b, h_q, s_q] or [h_q, total_q], or null
    int64_t lse_batch_stride, lse_head_stride;

    int32_t head_dim_v;  // columns of `out` that exist
    const float* sinks;  // [h_q] or null
    ScoreOptions scores;

    unsigned long long* rescales;  // tests: counts the warps that corrected their softmax reference; else null
};

// The tensors as the copy engine sees them. packed_q: in boxes of 16 rows, in place of 64 (which are 1 % faster on
// short rows, H100, 2026-11-27: docs/performance-log, 60).
struct ForwardMaps {
    const CUtensorMap &q, &packed_q, &k, &v, &out;
};

}  // namespace foveal::sm90
