// One tile of the forward pass: a run of queries against every key that they see, on the best SIMD target there is.
#pragma once

#include <cstdint>

#include "cpu/key_rows.hpp"
#include "problem/forward.hpp"
#include "problem/mask.hpp"

namespace foveal::cpu {

struct Part;

// Keys are visited in blocks that begin at multiples of this, whatever the tile: part of what makes a query's result
// independent of its surroundings. 64 keys x 48 queries of scores are 12 KiB, a quarter of an L1 cache.
inline constexpr int32_t kBlockKeys = 64;

// The query heads of one sequence that share a K/V head, and that head. They are one list of queries, numbered
// row * heads + head: a tile of them reads each key once for all heads, and few rows still fill the vectors.
// Strides are in elements.
struct HeadGroup {
    DType dtype;  // that is computed in: q's; of e4m3, f32
    DType q_dtype, keys_dtype, out_dtype;
    float q_descale, k_descale, v_descale;  // of what is in e4m3
    KeyRows k_descales, v_descales;         // [len_k] f32 in their place: each key's own; first is null: none
    const void* q;                          // [len_q, heads, d]
    void* out;                              // [len_q, heads, d_v]
    float* lse;                             // [heads, len_q] or null
    KeyRows k;                              // [len_k, d]
    KeyRows v;                              // [len_k, d_v]
    Strides q_stride, out_stride, lse_stride;
    int32_t len_q, len_k;
    int64_t heads;
    int64_t head_dim, head_dim_v;
    float scale;
    Band band;
    float softcap;              // 0: none
    const float* alibi_slopes;  // [heads] or null
    const float* sinks;         // [heads] or null
    int64_t alibi_stride, sinks_stride;
    const void* bias;     // [len_q, heads, len_k] or null
    const uint8_t* mask;  // [len_q, heads, len_k] or null
    DType bias_dtype;
    ScoreStrides bias_stride, mask_stride;
    // Bits that say which of tree_keys keys from tree_first_key on a query sees; null: none. Those keys may lie before
    // 0.
    const uint32_t* tree;     // [len_q, words]
    int64_t tree_row_stride;  // in words
    int32_t tree_first_key, tree_keys;
    // Dropout (problem/dropout.hpp). Weights are dropped as they are weighed, and the result is scaled at the end.
    uint32_t dropout_threshold;  // 0: none is dropped
    PhiloxKey dropout_key;
    uint32_t dropout_head;  // of the first head
    float dropout_scale;    // 1 where none is dropped

    int64_t queries() const { return len_q * heads; }
    // Are k and v in e4m3, to be taken to `dtype` as they are read?
    bool dequantises() const { return keys_dtype == DType::e4m3; }
    bool drops_weights() const { return dropout_threshold > 0; }
    double sink_of(int64_t head) const { return sinks[head * sinks_stride]; }
    // Have all queries the same bias and mask?
    bool shares_bias_row() const {
        const auto is_shared = [this](const ScoreStrides& stride) {
            return (stride.row == 0 || len_q <= 1) && (stride.head == 0 || heads <= 1);
        };
        return (bias == nullptr || is_shared(bias_stride)) && (mask == nullptr || is_shared(mask_stride)) &&
               (tree == nullptr || len_q <= 1);
    }
    // Is there anything to be added to the scores of keys [first, first + count), or to hide them by?
    bool has_bias_row(int32_t first, int64_t count) const {
        const bool reaches_tree =
            tree != nullptr && first < tree_first_key + tree_keys && first + count > tree_first_key;
        return bias != nullptr || mask != nullptr || reaches_tree;
    }
    // Between a query and a key, for ALiBi: no two are further apart.
    int64_t most_distance() const {
        const int64_t lengths = int64_t{len_q} + len_k, off = band.off;
        return off >= -len_q && off <= len_k ? lengths : lengths + (off < 0 ? -off : off);
    }
};

// Queries that are computed together. What a query's result is, to the bit, depends on which of its sequence's queries
// share its subtile: subtiles begin at multiples of this number and never at any other place.
int64_t subtile_queries();

// Floats of workspace that compute_tile needs for up to `queries` queries.
int64_t workspace_floats(int64_t head_dim, int64_t head_dim_v, int64_t queries);

// Computes out (and lse) for queries [begin, end) of the group; begin is a multiple of subtile_queries().
// workspace: aligned to 64 bytes; needs no initialisation.
void compute_tile(const HeadGroup& group, int64_t begin, int64_t end, float* workspace);

// The same of the keys [keys.begin, keys.end) alone, a part's, into rows begin .. end - 1 of it. keys.begin: a
// multiple of kBlockKeys, or the first key that is seen.
void compute_tile_of_part(const HeadGroup& group, int64_t begin, int64_t end, Range keys, const Part& part,
                          float* workspace);

// Highway's name of the target in use, such as "AVX3" for AVX-512.
const char* simd_target();

}  // namespace foveal::cpu
