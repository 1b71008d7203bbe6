#include "problem/forward.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <utility>

#include "problem/argument.hpp"
#include "problem/dropout_arguments.hpp"
#include "problem/element_types.hpp"
#include "problem/forward_inputs.hpp"
#include "problem/overlap.hpp"
#include "problem/workspace.hpp"

namespace foveal {
namespace {

void check_lengths_vector(const Argument& a, int64_t entries, const char* meaning, LastStride last_stride) {
    require_rank(a, 1, "a vector of lengths");
    require_dtype(a, DType::i32, a.name);
    require_dim(a, 0, entries, meaning);
    check_strided(a, last_stride);
}

void check_row_count(const std::string& name, int64_t n) {
    if (n > kMaxSequenceLength)
        refuse(name + " is " + std::to_string(n) + "; at most " + std::to_string(kMaxSequenceLength) +
               " rows are supported");
}

void check_options(const foveal_forward_args& args) {
    require_known_backend(args.backend);
    if (args.alignment != FOVEAL_BOTTOM_RIGHT && args.alignment != FOVEAL_TOP_LEFT)
        refuse("alignment is " + std::to_string(args.alignment) + "; known are 0 (bottom-right) and 1 (top-left)");
    if (std::isinf(args.scale)) refuse("scale is infinite; it must be finite, or NaN for 1/sqrt(d)");
    if (!(args.softcap >= 0) || std::isinf(args.softcap))
        refuse("softcap is " + std::to_string(args.softcap) + "; it must be positive and finite, or 0 for none");
    if (args.chunk < 0) refuse("chunk is " + std::to_string(args.chunk) + "; it must be positive, or 0 for no chunks");
    for (const auto& [name, value] : {std::pair{"reserved", args.reserved}, {"reserved_2", args.reserved_2}})
        if (value != 0) refuse(std::string(name) + " is " + std::to_string(value) + "; it must be 0");
    for (const auto& [name, width] : {std::pair{"window_left", args.window_left}, {"window_right", args.window_right}})
        if (width < FOVEAL_UNLIMITED)
            refuse(std::string(name) + " is " + std::to_string(width) + "; it must be >= 0, or -1 for no limit");
}

// Ranks and dtypes first: what follows reads shapes by position.
void check_forms(const foveal_forward_args& args, bool varlen, KeyForm keys) {
    const Argument q{"q", args.q}, out{"out", args.out};
    const char* layout = varlen ? "varlen (cu_seqlens_q is present)" : "dense (cu_seqlens_q is absent)";
    const auto check = [&](const Argument& a, int rank, const char* form) {
        require_rank(a, rank, form);
        check_strided(a);
    };
    check(q, varlen ? 3 : 4, layout);
    for (const Argument& a : {Argument{"k", args.k}, Argument{"v", args.v}})
        check(a, keys == KeyForm::varlen ? 3 : 4, layout_of_keys(args, keys));
    check(out, varlen ? 3 : 4, layout);
    check_element_types(args);
    require_no_overlap(out);
    const Argument lse{"lse", args.lse};
    if (!lse.present()) return;
    require_rank(lse, varlen ? 2 : 3, layout);
    require_dtype(lse, DType::f32, "the log-sum-exp");
    check_strided(lse);
    require_no_overlap(lse);
}

// f32 values of each query head.
void check_head_values(const Argument& a, const foveal_forward_args& args, int64_t batch, bool may_have_batch) {
    if (!a.present()) return;
    const int64_t heads_q = args.q.shape[args.q.rank - 2];
    if (!may_have_batch || a.tensor.rank != 2)
        require_rank(a, 1,
                     may_have_batch ? "a value for each query head ([h_q], or rank 2: [b, h_q])"
                                    : "a value for each query head");
    require_dtype(a, DType::f32, a.name);
    if (a.tensor.rank == 2) require_dim(a, 0, batch, "the batch size");
    require_dim(a, a.tensor.rank - 1, heads_q, "the number of q heads");
    check_strided(a, LastStride::one_or_shared);
}

// A value for each score, of a shape that broadcasts to theirs: [b or 1, h_q or 1, s_q or 1, s_k or 1], the first of
// which may be missing.
void check_score_matrix(const Argument& a, const foveal_forward_args& args, bool varlen, KeyForm keys) {
    if (!a.present()) return;
    if (varlen)
        refuse(a.text() +
               " is present; it needs the dense form, and cu_seqlens are present (pad the sequences to [b, s, h, d], "
               "with seqused_q and seqused_k for their lengths, and " +
               a.text() + " to [b, h_q, s_q, s_k]; or call for each sequence)");
    if (keys == KeyForm::varlen)
        refuse(a.text() + " is present beside cu_seqlens_k; it needs k and v dense or in pages");
    const struct {
        int64_t size;
        const char* or_one;
    } scores[] = {{args.q.shape[0], "q.shape[0] (or 1)"},
                  {args.q.shape[2], "q.shape[2] (or 1)"},
                  {args.q.shape[1], "q.shape[1] (or 1)"},
                  {args.k.shape[1], "k.shape[1] (or 1)"}};
    for (int i = 0; i < a.tensor.rank; ++i) {
        const auto& dimension = scores[FOVEAL_MAX_RANK - a.tensor.rank + i];
        if (keys == KeyForm::paged && i + 1 == a.tensor.rank) continue;  // any number of keys
        if (a.tensor.shape[i] != 1) require_dim(a, i, dimension.size, dimension.or_one);
    }
    check_strided(a, LastStride::one_or_shared);
}

// [b, s_q, words] or [total_q, words].
void check_tree(const foveal_forward_args& args, bool varlen) {
    const Argument tree{"tree_mask", args.tree_mask};
    if (!tree.present()) return;
    require_rank(tree, varlen ? 2 : 3, varlen ? "varlen ([total_q, words])" : "dense ([b, s_q, words])");
    require_dtype(tree, DType::u32, "bits of keys");
    require_dim(tree, 0, args.q.shape[0], "q.shape[0]");
    if (!varlen) require_dim(tree, 1, args.q.shape[1], "q.shape[1]");
    check_strided(tree);
}

void check_score_options(const foveal_forward_args& args, bool varlen, KeyForm keys, int64_t batch) {
    check_head_values({"alibi_slopes", args.alibi_slopes}, args, batch, true);
    check_head_values({"sinks", args.sinks}, args, batch, false);
    const Argument bias{"bias", args.bias}, mask{"mask", args.mask};
    check_score_matrix(bias, args, varlen, keys);
    if (bias.present() && bias.dtype() != DType::f32) require_bias_dtype(bias, args);
    check_score_matrix(mask, args, varlen, keys);
    if (mask.present()) require_dtype(mask, DType::boolean, "a mask");
    if (bias.present() && mask.present()) {
        const int last = bias.tensor.rank - 1;
        const int64_t keys_of_mask = mask.tensor.shape[mask.tensor.rank - 1];
        if (bias.tensor.shape[last] != 1 && keys_of_mask != 1)
            require_dim(bias, last, keys_of_mask, "the mask's last dimension");
    }
    check_tree(args, varlen);
}

void check_lengths(const foveal_forward_args& args, bool varlen, KeyForm keys, int64_t batch) {
    const Argument cu_q{"cu_seqlens_q", args.cu_seqlens_q}, cu_k{"cu_seqlens_k", args.cu_seqlens_k};
    if (varlen) {
        const bool both = keys == KeyForm::varlen;
        check_lengths_vector(cu_q, both ? cu_k.tensor.shape[0] : cu_q.tensor.shape[0], "cu_seqlens_k.shape[0]",
                             LastStride::one);
        if (batch < 0) refuse("cu_seqlens_q.shape[0] is 0; it has b + 1 entries");
    }
    if (batch > kMaxSequenceLength)
        refuse("the batch has " + std::to_string(batch) + " sequences; at most " + std::to_string(kMaxSequenceLength) +
               " are supported");
    if (keys == KeyForm::varlen)
        check_lengths_vector(cu_k, batch + 1, varlen ? "cu_seqlens_q.shape[0]" : "q.shape[0] plus 1", LastStride::one);
    for (const Argument& a : {Argument{"seqused_q", args.seqused_q}, Argument{"seqused_k", args.seqused_k},
                              Argument{"query_offset", args.query_offset}})
        if (a.present()) check_lengths_vector(a, batch, "the batch size", LastStride::one_or_shared);
    if (args.query_offset.rank != 0 && args.alignment != FOVEAL_BOTTOM_RIGHT)
        refuse("alignment is " + std::to_string(args.alignment) +
               " beside query_offset, which replaces it; it must be 0, the default");
    if (keys == KeyForm::paged) check_pages(args, batch);
}

void check_agreement(const foveal_forward_args& args, bool varlen, KeyForm keys, int64_t batch) {
    const Argument k{"k", args.k}, v{"v", args.v}, out{"out", args.out}, lse{"lse", args.lse};
    const int row = varlen ? 0 : 1, head = row + 1, dim = row + 2;
    const int row_k = keys == KeyForm::varlen ? 0 : 1, head_k = row_k + 1, dim_k = row_k + 2;
    const int64_t* q = args.q.shape;
    const char* const batch_name = varlen ? "the batch size" : "q.shape[0]";
    if (keys == KeyForm::dense) {
        require_dim(k, 0, batch, batch_name);
        require_dim(v, 0, batch, batch_name);
    }
    if (keys == KeyForm::paged) require_dim(v, 0, k.tensor.shape[0], "k.shape[0]");
    if (!varlen) require_dim(out, 0, q[0], "q.shape[0]");
    require_dim(v, row_k, k.tensor.shape[row_k], row_k == 0 ? "k.shape[0]" : "k.shape[1]");
    require_dim(out, row, q[row], varlen ? "q.shape[0]" : "q.shape[1]");
    require_dim(v, head_k, k.tensor.shape[head_k], row_k == 0 ? "k.shape[1]" : "k.shape[2]");
    require_dim(out, head, q[head], varlen ? "q.shape[1]" : "q.shape[2]");
    require_dim(k, dim_k, q[dim], varlen ? "q.shape[2]" : "q.shape[3]");
    require_dim(out, dim, v.tensor.shape[dim_k], row_k == 0 ? "v.shape[2]" : "v.shape[3]");
    if (!lse.present()) return;
    if (!varlen) require_dim(lse, 0, q[0], "q.shape[0]");
    require_dim(lse, varlen ? 0 : 1, q[head], "the number of q heads");
    require_dim(lse, varlen ? 1 : 2, q[row], "the number of q rows");
}

void check_sizes(const ForwardProblem& p) {
    if (p.heads_q < 1) refuse("q has " + std::to_string(p.heads_q) + " heads; at least 1 is needed");
    if (p.heads_k < 1) refuse("k has " + std::to_string(p.heads_k) + " heads; at least 1 is needed");
    if (p.heads_q % p.heads_k != 0)
        refuse("q has " + std::to_string(p.heads_q) + " heads and k has " + std::to_string(p.heads_k) +
               "; the first must be a multiple of the second");
    if (p.head_dim < 1) refuse("q's head dimension is " + std::to_string(p.head_dim) + "; at least 1 is needed");
    if (p.head_dim_v < 1) refuse("v's head dimension is " + std::to_string(p.head_dim_v) + "; at least 1 is needed");
    check_row_count(p.varlen ? "q.shape[0]" : "q.shape[1]", p.rows_q);
    if (p.keys != KeyForm::paged) check_row_count(p.keys == KeyForm::varlen ? "k.shape[0]" : "k.shape[1]", p.rows_k);
}

void require_known_ranks(const foveal_forward_args& args) {
    for (const ForwardInput& input : kForwardInputs) require_known_rank({input.name, args.*input.tensor});
    require_known_rank({"out", args.out});
    require_known_rank({"lse", args.lse});
}

// The validated options, and strides of the tensors that belong to them.
void take_options(const foveal_forward_args& args, ForwardProblem& p) {
    p.scale =
        std::isnan(args.scale) ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.head_dim))) : args.scale;
    p.window_left = args.window_left;
    p.window_right = args.window_right;
    p.alignment = args.alignment;
    p.chunk = args.chunk;
    p.softcap = args.softcap;
    p.dropout_p = args.dropout_p;
    p.has_alibi = args.alibi_slopes.rank != 0;
    if (p.has_alibi) p.alibi = head_strides_of(args.alibi_slopes);
    p.has_sinks = args.sinks.rank != 0;
    if (p.has_sinks) p.sinks = head_strides_of(args.sinks);
    p.has_bias = args.bias.rank != 0;
    if (p.has_bias) p.bias_dtype = dtype_of(args.bias), p.bias = score_strides_of(args.bias);
    p.has_mask = args.mask.rank != 0;
    if (p.has_mask) p.mask = score_strides_of(args.mask);
    p.has_query_offset = args.query_offset.rank != 0;
    if (p.has_query_offset) p.query_offset_stride = static_cast<int32_t>(unit_stride_of(args.query_offset));
    p.has_tree = args.tree_mask.rank != 0;
    if (!p.has_tree) return;
    p.tree_words = args.tree_mask.shape[args.tree_mask.rank - 1];
    if (!has_elements(args.tree_mask)) return;
    const int row = p.varlen ? 0 : 1;
    p.tree = {p.varlen ? 0 : stride_or_zero(args.tree_mask, 0), stride_or_zero(args.tree_mask, row), 0};
}

void take_pages(const foveal_forward_args& args, ForwardProblem& p) {
    p.pages = args.k.shape[0];
    p.page_size = static_cast<int32_t>(args.k.shape[1]);
    p.rows_k = most_keys_in_pages(args);
    p.lists_pages = args.block_table.rank == 0;
    p.page_entries = p.lists_pages ? args.page_indices.shape[0] : args.block_table.shape[1];
    if (!p.lists_pages && has_elements(args.block_table)) p.page_table_stride = stride_or_zero(args.block_table, 0);
}

// Rows and heads; who reads shapes by position has checked ranks.
void take_sizes(const foveal_forward_args& args, ForwardProblem& p) {
    const int row = p.varlen ? 0 : 1, row_k = p.keys == KeyForm::varlen ? 0 : 1;
    p.rows_q = args.q.shape[row];
    p.rows_k = args.k.shape[row_k];
    p.heads_q = args.q.shape[row + 1];
    p.heads_k = args.k.shape[row_k + 1];
    p.head_dim = args.q.shape[row + 2];
    p.head_dim_v = args.v.shape[row_k + 2];
    if (p.keys == KeyForm::paged) take_pages(args, p);
}

// Rows are computed in no particular order, so what one of them writes must not be what another one reads.
void check_overlaps(const foveal_forward_args& args) {
    const foveal_tensor workspace_tensor = bytes_of_workspace(args.workspace, args.workspace_bytes);
    const foveal_tensor state_tensor = tensor_of_dropout_state(args.dropout_state);
    const Placed out{{"out", args.out}}, lse{{"lse", args.lse}}, workspace{{"workspace", workspace_tensor}};
    require_apart(out, lse);
    require_apart(workspace, out);
    require_apart(workspace, lse);
    const auto keep_apart = [&](const Placed& read) {
        require_apart(out, read);
        require_apart(lse, read);
        require_apart(workspace, read);
    };
    for (const ForwardInput& input : kForwardInputs)
        if ((args.*input.tensor).rank != 0) keep_apart(Placed{{input.name, args.*input.tensor}});
    if (state_tensor.rank != 0) keep_apart(Placed{{"dropout_state", state_tensor}});
}

}  // namespace

void require_scale(const ForwardProblem& p, const char* by_whom) {
    constexpr float kLargest = 0x1p100F;
    if (std::abs(p.scale) <= kLargest) return;
    std::ostringstream text;
    text << "scale is " << p.scale << "; " << by_whom << " supports up to 2^100 (" << kLargest << ")";
    throw Error(FOVEAL_UNSUPPORTED, text.str());
}

ForwardProblem validate(const foveal_forward_args& args) {
    require_known_ranks(args);
    check_options(args);
    const bool varlen = args.cu_seqlens_q.rank != 0;
    const KeyForm keys = key_form_of(args);
    check_forms(args, varlen, keys);

    ForwardProblem p;
    take_element_types(args, p);
    p.varlen = varlen;
    p.keys = keys;
    p.has_seqused_q = args.seqused_q.rank != 0;
    p.has_seqused_k = args.seqused_k.rank != 0;
    if (p.has_seqused_q) p.seqused_q_stride = static_cast<int32_t>(unit_stride_of(args.seqused_q));
    if (p.has_seqused_k) p.seqused_k_stride = static_cast<int32_t>(unit_stride_of(args.seqused_k));
    p.wants_lse = args.lse.rank != 0;
    p.batch = varlen ? std::max<int64_t>(args.cu_seqlens_q.shape[0], 0) - 1 : args.q.shape[0];
    check_lengths(args, varlen, keys, p.batch);
    check_agreement(args, varlen, keys, p.batch);
    check_score_options(args, varlen, keys, p.batch);
    take_sizes(args, p);
    check_sizes(p);
    check_descales(args, p.batch, p.heads_k);
    check_dropout(args.dropout_p, p.batch, p.heads_q);
    p.q = strides_of(args.q);
    p.k = strides_of(args.k);
    p.v = strides_of(args.v);
    p.out = strides_of(args.out);
    if (p.wants_lse) p.lse = lse_strides_of(args.lse);
    take_options(args, p);
    return p;
}

ForwardPointers pointers_of(const foveal_forward_args& args) {
    const auto i32 = [](const char* name, const foveal_tensor& t) {
        return static_cast<const int32_t*>(data_of({name, t}));
    };
    ForwardPointers p;
    p.q = data_of({"q", args.q});
    p.k = data_of({"k", args.k});
    p.v = data_of({"v", args.v});
    p.out = const_cast<void*>(data_of({"out", args.out}));
    p.lse = static_cast<float*>(const_cast<void*>(data_of({"lse", args.lse})));
    p.cu_seqlens_q = i32("cu_seqlens_q", args.cu_seqlens_q);
    p.cu_seqlens_k = i32("cu_seqlens_k", args.cu_seqlens_k);
    p.seqused_q = i32("seqused_q", args.seqused_q);
    p.seqused_k = i32("seqused_k", args.seqused_k);
    p.alibi_slopes = static_cast<const float*>(data_of({"alibi_slopes", args.alibi_slopes}));
    p.sinks = static_cast<const float*>(data_of({"sinks", args.sinks}));
    p.bias = data_of({"bias", args.bias});
    p.mask = static_cast<const uint8_t*>(data_of({"mask", args.mask}));
    const bool lists_pages = args.block_table.rank == 0;
    p.page_entries = static_cast<const uint32_t*>(lists_pages ? data_of({"page_indices", args.page_indices})
                                                              : data_of({"block_table", args.block_table}));
    p.page_indptr = i32("page_indptr", args.page_indptr);
    p.query_offset = i32("query_offset", args.query_offset);
    p.tree_mask = static_cast<const uint32_t*>(data_of({"tree_mask", args.tree_mask}));
    p.q_descale = static_cast<const float*>(data_of({"q_descale", args.q_descale}));
    p.k_descale = static_cast<const float*>(data_of({"k_descale", args.k_descale}));
    p.v_descale = static_cast<const float*>(data_of({"v_descale", args.v_descale}));
    p.dropout_state = dropout_state_of(args);
    check_workspace(args.workspace, args.workspace_bytes);
    p.workspace = args.workspace;
    p.workspace_bytes = args.workspace_bytes;
    check_overlaps(args);
    return p;
}

}  // namespace foveal
