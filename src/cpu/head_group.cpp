#include "cpu/head_group.hpp"

#include <algorithm>
#include <cstddef>

namespace foveal::cpu {
namespace {

// Of one head. The batch strides are those of pages, if the keys are in pages.
// element: bytes of one
KeyRows key_rows(const ForwardProblem& problem, const void* tensor, int64_t element, const Strides& stride,
                 const Sequence& sequence, int64_t batch, int64_t head) {
    const bool in_pages = sequence.pages != nullptr;
    const int64_t first = offset_of(stride, in_pages ? 0 : batch, sequence.first_k, head);
    KeyRows rows{static_cast<const std::byte*>(tensor) + first * element, stride.row * element};
    if (in_pages) {
        rows.pages = sequence.pages;
        rows.page_size = problem.page_size;
        rows.page_stride_bytes = stride.batch * element;
    }
    return rows;
}

void set_tree(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers,
              const Sequence& sequence, int64_t batch) {
    constexpr int64_t kBitsOfWord = 32;
    group.tree = problem.has_tree ? pointers.tree_mask + offset_of(problem.tree, batch, sequence.first_q, 0) : nullptr;
    group.tree_row_stride = problem.tree.row;
    group.tree_first_key = sequence.len_k - sequence.len_q;
    group.tree_keys = static_cast<int32_t>(std::min<int64_t>(sequence.len_q, problem.tree_words * kBitsOfWord));
}

void set_score_options(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers, int64_t batch,
                       int64_t head_q) {
    group.softcap = problem.softcap;
    group.alibi_slopes =
        problem.has_alibi ? pointers.alibi_slopes + offset_of(problem.alibi, batch, 0, head_q) : nullptr;
    group.alibi_stride = problem.alibi.head;
    group.sinks = problem.has_sinks ? pointers.sinks + offset_of(problem.sinks, batch, 0, head_q) : nullptr;
    group.sinks_stride = problem.sinks.head;
    group.bias_dtype = problem.bias_dtype;
    group.bias = problem.has_bias
                     ? advance(problem.bias_dtype, pointers.bias, offset_of(problem.bias, batch, 0, head_q))
                     : nullptr;
    group.bias_stride = problem.bias;
    group.mask = problem.has_mask ? pointers.mask + offset_of(problem.mask, batch, 0, head_q) : nullptr;
    group.mask_stride = problem.mask;
}

void set_dropout(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers, int64_t batch,
                 int64_t head_q) {
    group.dropout_threshold = dropout_threshold(problem.dropout_p);
    group.dropout_key = group.drops_weights() ? dropout_key(pointers.dropout_state) : PhiloxKey{};
    group.dropout_head = static_cast<uint32_t>(batch * problem.heads_q + head_q);
    group.dropout_scale = dropout_scale(group.dropout_threshold);
}

float descale_of(const Descale& descale, const float* values, int64_t batch, int64_t head_k) {
    return descale.present && !descale.of_rows ? values[offset_of(descale.stride, batch, 0, head_k)] : 1.0f;
}

void set_types(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers,
               const Sequence& sequence, int64_t batch, int64_t head_k) {
    const auto of_rows = [&](const Descale& descale, const float* values) {
        if (!descale.of_rows) return KeyRows{};
        return key_rows(problem, values, bytes_of(DType::f32), descale.stride, sequence, batch, head_k);
    };
    group.dtype = problem.dtype == DType::e4m3 ? DType::f32 : problem.dtype;
    group.q_dtype = problem.dtype;
    group.keys_dtype = problem.keys_dtype;
    group.out_dtype = problem.out_dtype;
    group.q_descale = descale_of(problem.q_descale, pointers.q_descale, batch, head_k);
    group.k_descale = descale_of(problem.k_descale, pointers.k_descale, batch, head_k);
    group.v_descale = descale_of(problem.v_descale, pointers.v_descale, batch, head_k);
    group.k_descales = of_rows(problem.k_descale, pointers.k_descale);
    group.v_descales = of_rows(problem.v_descale, pointers.v_descale);
}

}  // namespace

HeadGroup head_group(const ForwardProblem& problem, const ForwardPointers& pointers, const Sequence& sequence,
                     int64_t batch, int64_t head_q, int64_t heads) {
    const int64_t head_k = head_q / problem.heads_per_kv();
    HeadGroup group;
    set_types(group, problem, pointers, sequence, batch, head_k);
    group.q = advance(problem.dtype, pointers.q, offset_of(problem.q, batch, sequence.first_q, head_q));
    group.k = key_rows(problem, pointers.k, bytes_of(problem.keys_dtype), problem.k, sequence, batch, head_k);
    group.v = key_rows(problem, pointers.v, bytes_of(problem.keys_dtype), problem.v, sequence, batch, head_k);
    group.out = advance(problem.out_dtype, pointers.out, offset_of(problem.out, batch, sequence.first_q, head_q));
    group.lse = problem.wants_lse ? pointers.lse + offset_of(problem.lse, batch, sequence.first_q, head_q) : nullptr;
    group.q_stride = problem.q;
    group.out_stride = problem.out;
    group.lse_stride = problem.lse;
    group.len_q = sequence.len_q;
    group.len_k = sequence.len_k;
    group.heads = heads;
    group.head_dim = problem.head_dim;
    group.head_dim_v = problem.head_dim_v;
    group.scale = problem.scale;
    group.band = sequence.band(problem);
    set_tree(group, problem, pointers, sequence, batch);
    set_score_options(group, problem, pointers, batch, head_q);
    set_dropout(group, problem, pointers, batch, head_q);
    return group;
}

}  // namespace foveal::cpu
