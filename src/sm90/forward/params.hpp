// What a forward launch hands to its kernel, besides the tensor maps.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/forward/key_places.hpp"
#include "sm90/forward/schedule.hpp"
#include "sm90/scores/options.hpp"

struct CUtensorMap_st;  // of cuda.h, which plans do without

namespace foveal::sm90 {

struct ForwardParams {
    int32_t batch;
    int32_t rows_q;         // dense: s_q; varlen: total_q
    int32_t rows_k;         // dense: s_k; varlen: total_k
    int32_t mapped_rows_k;  // rows of K and V that the tensor map reaches: at least 1
    int32_t heads_k;
    int32_t heads_per_kv;       // query heads that share a KV head
    int32_t heads_log2;         // of them, that tiles may hold packed, as a power of two (schedule.hpp)
    int32_t least_saved_tiles;  // varlen: as in ForwardSchedule
    Window window;
    float scale_log2;  // scale * log2(e)
    uint32_t zero;     // 0, which the compiler does not know (instruction_order.cuh)

    FastTileOrder order;  // dense; varlen: last_rows_first only
    Divisor by_heads_k;
    int32_t section_keys;  // varlen: keys of one head's K and V that a section of a sequence's order may hold
    // Varlen: CTAs that get neighbouring tiles together (balance.cuh); 0: none do. And the KV units whose heads, if
    // they are not packed, are whole bundles.
    int32_t bundle;
    Divisor by_bundle, bundle_units;
    int32_t packed_section_keys;  // varlen: up to so many keys are a sequence's heads one section
    int32_t passed_over_blocks;   // as in ForwardSchedule

    const int32_t* cu_seqlens_q;  // [b + 1] or null: dense
    const int32_t* cu_seqlens_k;  // [b + 1] or null
    const int32_t* seqused_q;     // [b] or null
    const int32_t* seqused_k;     // [b] or null

    void* out;  // [b, s_q, h_q, d_v] or [total_q, h_q, d_v], of q's type, or f32 (ForwardConfig::writes_f32())
    int64_t out_batch_stride, out_row_stride, out_head_stride;
    float* lse;  // [b, h_q, s_q] or [h_q, total_q], or null
    int64_t lse_batch_stride, lse_head_stride;

    int32_t head_dim_v;  // columns of `out` that exist
    const float* sinks;  // [h_q] or null
    ScoreOptions scores;

    KeyPlaces places;  // only kernels that take keys of any form read it
};

// The tensors as the copy engine sees them. packed_q: in boxes of 16 rows, in place of 64 (which are 1 % faster on
// short rows, H100, 2026-11-27: docs/performance-log, 60).
struct ForwardMaps {
    const CUtensorMap_st &q, &packed_q, &k, &v, &out;
};

}  // namespace foveal::sm90
