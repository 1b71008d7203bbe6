// What a decode launch hands to its kernel, besides the tensor maps.
#pragma once

#include <cstdint>

#include "problem/lengths.hpp"
#include "problem/mask.hpp"
#include "problem/page_table.hpp"
#include "sm90/decode/split.hpp"
#include "sm90/scores/options.hpp"
#include "sm90/tile/divisor.hpp"

struct CUtensorMap_st;  // of cuda.h, which plans do without

namespace foveal::sm90 {

// K or V as a thread's own copies read it; strides in elements.
struct DecodeRows {
    const void* data;      // [pages, page_size, h_k, d], [b, s_k, h_k, d] or [total_k, h_k, d]
    int64_t batch_stride;  // of pages or sequences
    int64_t row_stride, head_stride;
    int32_t columns;  // that exist
};

// Of K or V in e4m3; strides in elements.
struct DecodeDescale {
    const float* data;  // null: 1
    bool of_rows;       // [pages, page_size, h_k] or [b, s_k, h_k]; else [b, h_k]
    int64_t batch_stride, row_stride, head_stride;
};

struct DecodeParams {
    // ---- sequences
    int32_t batch;
    int32_t heads_per_kv;
    int32_t
        column_parts;  // of a dense q: into which the columns of a KV head are cut, as if they were of several heads
    int32_t heads;     // h_k * column_parts
    int32_t least_rows, most_rows;  // of a varlen q: of the sequences that this kernel takes
    Divisor by_heads, by_column_parts, by_heads_per_kv;
    Lengths lengths_q, lengths_k;
    const int32_t* query_offset;  // [b] or null
    int32_t query_offset_stride;
    Window window;

    // ---- keys and values
    PageTable table;  // entries null: not in pages
    Divisor by_page_size;
    int32_t absent_page;              // a page, or sequence, that the tensor maps do not reach: zeros
    int32_t block_pages, block_rows;  // 64 keys in pages, and the rows that are left
    int32_t box_rows;                 // of a tensor map's box; 0: threads copy rows one by one
    DecodeRows k, v;

    // ---- queries and output
    const void* q;  // [b, s_q, h_q, d] or [total_q, h_q, d]
    int64_t q_batch_stride, q_row_stride, q_head_stride;
    void* out;  // likewise, with d_v
    int64_t out_batch_stride, out_row_stride, out_head_stride;
    float* lse;  // [b, h_q, s_q] or [h_q, total_q], or null
    int64_t lse_batch_stride, lse_head_stride;

    // ---- scores
    float scale_log2;    // scale * log2(e); with options 1
    const float* sinks;  // [h_q] or null
    ScoreOptions scores;
    const uint32_t* tree;  // [b, s_q, words] or [total_q, words], or null
    int64_t tree_batch_stride, tree_row_stride;
    int32_t tree_keys;  // that have a bit in a row's words

    // The kernel before it in the stream writes other rows: it is waited for at this one's end, not at its beginning.
    bool beside;

    // ---- how the work is split
    bool splits;  // false: there is no workspace, and each CTA takes a whole sequence of one head
    Teams teams;
    NodeSets sets;
    int32_t*
        arrived;   // [count_of(), heads]: blocks of a cut sequence, or part, that are worked out; zero between launches
    float* nodes;  // [sets.nodes(), node_floats]

    // ---- keys and values in e4m3
    DecodeDescale k_descale, v_descale;
    bool has_row_descales;  // of K, or V, or both
};

// The tensors as the copy engine sees them: (column, row, head, page or sequence).
struct DecodeMaps {
    const CUtensorMap_st &k, &v;
};

}  // namespace foveal::sm90
