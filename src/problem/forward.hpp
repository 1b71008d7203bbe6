// One forward problem: everything that decides what is computed, nothing that says where the data lie.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"
#include "problem/dropout.hpp"
#include "problem/dtype.hpp"
#include "problem/key_form.hpp"
#include "problem/lengths.hpp"
#include "problem/mask.hpp"
#include "problem/page_table.hpp"
#include "problem/strides.hpp"

namespace foveal {

// Where the data lie. Shapes in elements: see foveal.h.
struct ForwardPointers {
    const void* q = nullptr;                  // [b, s_q, h_q, d] or [total_q, h_q, d]
    const void* k = nullptr;                  // [b, s_k, h_k, d], [total_k, h_k, d] or [pages, page_size, h_k, d]
    const void* v = nullptr;                  // likewise, with d_v
    void* out = nullptr;                      // [b, s_q, h_q, d_v] or [total_q, h_q, d_v]
    float* lse = nullptr;                     // [b, h_q, s_q] or [h_q, total_q]
    const int32_t* cu_seqlens_q = nullptr;    // [b + 1]
    const int32_t* cu_seqlens_k = nullptr;    // [b + 1]
    const int32_t* seqused_q = nullptr;       // [b]
    const int32_t* seqused_k = nullptr;       // [b]
    const float* alibi_slopes = nullptr;      // [h_q] or [b, h_q]
    const float* sinks = nullptr;             // [h_q]
    const void* bias = nullptr;               // [b|1, h_q|1, s_q|1, s_k|1]
    const uint8_t* mask = nullptr;            // [b|1, h_q|1, s_q|1, s_k|1]
    const uint32_t* page_entries = nullptr;   // [b, max_pages], or [n] where there is page_indptr
    const int32_t* page_indptr = nullptr;     // [b + 1]
    const int32_t* query_offset = nullptr;    // [b]
    const uint32_t* tree_mask = nullptr;      // [b, s_q, words] or [total_q, words]
    const float* q_descale = nullptr;         // [b, h_k]
    const float* k_descale = nullptr;         // [b, h_k], or [pages, page_size, h_k]
    const float* v_descale = nullptr;         // likewise
    const uint64_t* dropout_state = nullptr;  // [2]: seed, offset
    void* workspace = nullptr;
    uint64_t workspace_bytes = 0;
};

// Of a tensor in e4m3: there is a factor for each sequence and K/V head, this far from each other; or, of k and v, for
// each row and head, where they lie like the rows themselves.
struct Descale {
    bool present = false, of_rows = false;
    Strides stride;
    bool operator==(const Descale&) const = default;
};

struct ForwardProblem {
    DType dtype = DType::bf16;       // of q
    DType keys_dtype = DType::bf16;  // of k and v: q's, or e4m3
    DType out_dtype = DType::bf16;   // q's, or f32; of e4m3 q: bf16, f16 or f32
    Descale q_descale, k_descale, v_descale;
    bool varlen = false;  // q, out and lse
    KeyForm keys = KeyForm::dense;
    bool has_seqused_q = false;
    bool has_seqused_k = false;
    int32_t seqused_q_stride = 1;  // 0: one length for all sequences
    int32_t seqused_k_stride = 1;
    bool wants_lse = false;

    int64_t batch = 0;
    int64_t rows_q = 0;  // dense: s_q; varlen: total_q
    int64_t rows_k = 0;  // dense: s_k; varlen: total_k; paged: of a sequence at most
    int64_t heads_q = 0;
    int64_t heads_k = 0;
    int64_t head_dim = 0;
    int64_t head_dim_v = 0;

    Strides q, k, v, out, lse;  // of pages, batch is the distance between them and row that between a page's rows

    int64_t pages = 0;              // paged: that k and v have
    int32_t page_size = 0;          // likewise: rows of a page
    bool lists_pages = false;       // by page_indptr and page_indices, not by block_table
    int64_t page_entries = 0;       // of a sequence (max_pages), or of the list
    int64_t page_table_stride = 0;  // of block_table, between sequences

    float scale = 0;  // never NaN: the default is filled in
    int64_t window_left = FOVEAL_UNLIMITED;
    int64_t window_right = FOVEAL_UNLIMITED;
    foveal_alignment alignment = FOVEAL_BOTTOM_RIGHT;
    int64_t chunk = 0;                // 0: no chunks
    bool has_query_offset = false;    // in place of alignment
    int32_t query_offset_stride = 1;  // 0: one for all sequences

    float softcap = 0;  // 0: none
    bool has_alibi = false;
    bool has_sinks = false;
    Strides alibi, sinks;  // head: 1, or 0 where all share one
    bool has_bias = false;
    DType bias_dtype = DType::f32;
    ScoreStrides bias;
    bool has_mask = false;
    ScoreStrides mask;
    bool has_tree = false;
    int64_t tree_words = 0;  // of a query's row
    Strides tree;
    float dropout_p = 0;

    bool operator==(const ForwardProblem&) const = default;

    int64_t heads_per_kv() const { return heads_q / heads_k; }
    // Is a score anything but scale * q.k under a window?
    bool modifies_scores() const { return softcap > 0 || has_alibi || has_bias || has_mask; }
    // Is any weight dropped? A probability below 2^-17 is none.
    bool drops_weights() const { return dropout_threshold(dropout_p) > 0; }
    Window window() const {
        const auto width = [](int64_t w) {
            return w == FOVEAL_UNLIMITED || w >= kUnlimitedWidth ? kUnlimitedWidth : static_cast<int32_t>(w);
        };
        return {width(window_left), width(window_right), alignment == FOVEAL_TOP_LEFT,
                static_cast<int32_t>(chunk < kUnlimitedWidth ? chunk : kUnlimitedWidth)};
    }
    // off of a sequence with these lengths (contract 1.3).
    int32_t offset_of(int64_t sequence, int32_t len_q, int32_t len_k, const int32_t* query_offset) const {
        if (has_query_offset) return query_offset[sequence * query_offset_stride];
        return alignment == FOVEAL_TOP_LEFT ? 0 : len_k - len_q;
    }
    // Rows of q over the whole batch, an upper bound of the work when seqused or varlen shorten it.
    int64_t total_rows_q() const { return varlen ? rows_q : batch * rows_q; }

    Lengths lengths_q(const ForwardPointers& at) const {
        return {static_cast<int32_t>(rows_q), at.cu_seqlens_q, at.seqused_q, seqused_q_stride};
    }
    Lengths lengths_k(const ForwardPointers& at) const {
        return {static_cast<int32_t>(rows_k), at.cu_seqlens_k, at.seqused_k, seqused_k_stride};
    }
    PageTable page_table(const ForwardPointers& at) const {
        return {at.page_entries, at.page_indptr, page_table_stride, page_size};
    }
};

// What a backend asks where it multiplies q.k by the scale in f32: with a larger one, products of ordinary size would
// be past the end of it. Throws Error(UNSUPPORTED).
void require_scale(const ForwardProblem& problem, const char* by_whom);

// Shapes, strides, dtypes and options, independent of any backend. Throws Error(INVALID_ARGUMENT) naming the argument.
ForwardProblem validate(const foveal_forward_args& args);

// The data pointers of validated arguments: present where elements are, aligned to their element, and no byte of what
// is written in what is read or in what else is written. Throws as validate() does.
ForwardPointers pointers_of(const foveal_forward_args& args);

}  // namespace foveal
