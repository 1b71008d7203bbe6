#include <algorithm>
#include <array>

#include "tests/support/case_pages.hpp"
#include "tests/support/device_data.hpp"

namespace foveal_testing {
namespace {

// Elements before and after an output: what a kernel writes there is found by scanning for lost poison.
constexpr int64_t kGuardElements = 256;

// A dimension in memory order, outermost first; logical: its index in the tensor's shape.
struct MemoryDimension {
    int logical;
    int64_t size;
    int64_t padding;
};

TensorLayout lay_out(foveal_dtype dtype, const std::vector<MemoryDimension>& dimensions, bool guarded) {
    TensorLayout layout;
    layout.view.dtype = dtype;
    layout.view.rank = static_cast<int32_t>(dimensions.size());
    int64_t stride = 1;
    int64_t elements = 1;
    int64_t offset = 0;
    for (size_t n = dimensions.size(); n-- > 0;) {
        const MemoryDimension& dim = dimensions[n];
        layout.view.shape[dim.logical] = dim.size;
        layout.view.stride[dim.logical] = stride;
        stride *= std::max<int64_t>(dim.size + dim.padding, 1);
        elements *= dim.size + dim.padding;
        if (dim.padding > 0 && n + 1 == dimensions.size()) offset = stride;  // the view begins after one padded row
    }
    const int64_t guard = guarded ? kGuardElements : 0;
    layout.offset = elements == 0 ? guard : offset + guard;
    layout.buffer_elements = (elements == 0 ? 0 : elements + offset) + 2 * guard;
    return layout;
}

// Rows as they lie: [batch, rows, heads, channels], or without the first if packed.
struct RowShape {
    bool packed;
    int64_t batch, rows;
};
RowShape shape_of_q(const Case& c) { return {c.varlen, c.batch, c.rows_q}; }
RowShape shape_of_k(const Case& c) {
    return c.page_size > 0 ? RowShape{false, page_count(c), c.page_size} : RowShape{c.varlen_k, c.batch, c.rows_k};
}

TensorLayout lay_out_rows(const Case& c, foveal_dtype dtype, const RowShape& shape, int64_t heads, int64_t channels,
                          bool guarded) {
    const bool pad = c.padded;
    const int first = shape.packed ? 0 : 1;  // index of the row in the shape
    const MemoryDimension row{first, shape.rows, pad ? 3 : 0};
    const MemoryDimension head{first + 1, heads, pad ? 1 : 0};
    const int64_t whole_vector = dtype == FOVEAL_E4M3 ? 16 : 8;  // elements of 16 bytes or a multiple
    const MemoryDimension channel{first + 2, channels, pad ? whole_vector : 0};
    std::vector<MemoryDimension> dimensions;
    if (!shape.packed) dimensions.push_back({0, shape.batch, pad ? 1 : 0});
    dimensions.push_back(c.bhsd ? head : row);
    dimensions.push_back(c.bhsd ? row : head);
    dimensions.push_back(channel);
    return lay_out(dtype, dimensions, guarded);
}

// q, k or v, of which several may lie in one buffer of `heads_in_all`: heads [first_head, first_head + heads) of it.
TensorLayout lay_out_shared(const Case& c, foveal_dtype dtype, const RowShape& shape, int64_t heads_in_all,
                            int64_t heads, int64_t channels, int64_t first_head) {
    TensorLayout layout = lay_out_rows(c, dtype, shape, heads_in_all, channels, false);
    const int head = shape.packed ? 1 : 2;
    layout.view.shape[head] = heads;
    if (layout.buffer_elements > 0) layout.offset += first_head * layout.view.stride[head];
    return layout;
}

TensorLayout lay_out_q(const Case& c) {
    return lay_out_shared(c, c.dtype, shape_of_q(c), c.heads_q + (c.qkv ? 2 * c.heads_k : 0), c.heads_q, c.head_dim, 0);
}

TensorLayout lay_out_k(const Case& c, bool of_v) {
    const int64_t channels = of_v ? c.head_dim_v : c.head_dim;
    const int64_t before = c.qkv ? c.heads_q : 0;  // heads of q
    if (!c.qkv && !c.pool) return lay_out_rows(c, c.keys_dtype(), shape_of_k(c), c.heads_k, channels, false);
    return lay_out_shared(c, c.keys_dtype(), shape_of_k(c), before + 2 * c.heads_k, c.heads_k, channels,
                          before + (of_v ? c.heads_k : 0));
}

TensorLayout lay_out_lse(const Case& c) {
    const int first = c.varlen ? 0 : 1;
    std::vector<MemoryDimension> dimensions;
    if (!c.varlen) dimensions.push_back({0, c.batch, c.padded ? 1 : 0});
    dimensions.push_back({first, c.heads_q, c.padded ? 1 : 0});
    dimensions.push_back({first + 1, c.rows_q, c.padded ? 4 : 0});
    return lay_out(FOVEAL_F32, dimensions, true);
}

TensorLayout lay_out_slopes(const Case& c) {
    std::vector<MemoryDimension> dimensions;
    if (c.alibi == Alibi::kBySequenceAndHead) dimensions.push_back({0, c.batch, 0});
    dimensions.push_back({static_cast<int>(dimensions.size()), c.heads_q, c.padded ? 3 : 0});
    return lay_out(FOVEAL_F32, dimensions, false);
}

TensorLayout lay_out_row_descales(const Case& c) {
    const RowShape shape = shape_of_k(c);
    const int64_t pad = c.padded ? 1 : 0;
    return lay_out(FOVEAL_F32, {{0, shape.batch, pad}, {1, shape.rows, pad}, {2, c.heads_k, 3 * pad}}, false);
}

TensorLayout lay_out_descales(const Case& c) {
    TensorLayout layout =
        lay_out(FOVEAL_F32, {{0, c.batch, c.padded ? 1 : 0}, {1, c.heads_k, c.padded ? 3 : 0}}, false);
    if (c.one_descale) layout.view.stride[0] = layout.view.stride[1] = 0;
    return layout;
}

// Rows of an odd pitch where padded: nothing is said of its alignment.
TensorLayout lay_out_scores(const Case& c, const ScoreMatrix& matrix, foveal_dtype dtype) {
    const int64_t pad = c.padded ? 1 : 0;
    return lay_out(dtype,
                   {{0, matrix.by_sequence ? c.batch : 1, pad},
                    {1, matrix.by_head ? c.heads_q : 1, pad},
                    {2, matrix.by_query ? c.rows_q : 1, pad * 3},
                    {3, matrix.by_key ? c.rows_k : 1, pad * (c.rows_k % 2 == 0 ? 5 : 4)}},
                   false);
}

foveal_tensor packed_tensor(foveal_dtype dtype, const std::vector<int64_t>& shape) {
    foveal_tensor tensor{};
    tensor.dtype = dtype;
    tensor.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (size_t n = shape.size(); n-- > 0; stride *= std::max<int64_t>(shape[n], 1)) {
        tensor.shape[n] = shape[n];
        tensor.stride[n] = stride;
    }
    return tensor;
}

foveal_tensor lengths_tensor(int64_t entries) { return packed_tensor(FOVEAL_I32, {entries}); }

void set_pages(const Case& c, foveal_forward_args& args) {
    if (c.page_size == 0) return;
    if (c.lists_pages) {
        args.page_indptr = lengths_tensor(c.batch + 1);
        args.page_indices = lengths_tensor(static_cast<int64_t>(page_indices(c).size()));
    } else {
        // Both types are tried.
        args.block_table = packed_tensor(c.page_order % 2 == 0 ? FOVEAL_I32 : FOVEAL_U32, {c.batch, table_columns(c)});
    }
}

void set_tree(const Case& c, foveal_forward_args& args) {
    if (!c.tree) return;
    const int64_t words = tree_words(c);
    args.tree_mask =
        c.varlen ? packed_tensor(FOVEAL_U32, {c.rows_q, words}) : packed_tensor(FOVEAL_U32, {c.batch, c.rows_q, words});
}

}  // namespace

const char* tensor_name(TensorId id) {
    constexpr std::array<const char*, kTensors> kNames = {
        "q", "k", "v", "out", "lse", "alibi_slopes", "sinks", "bias", "mask", "q_descale", "k_descale", "v_descale"};
    return kNames[static_cast<size_t>(id)];
}

bool has_tensor(const Case& c, TensorId id) {
    switch (id) {
        case TensorId::kLse:
            return c.lse;
        case TensorId::kAlibi:
            return c.alibi != Alibi::kNone;
        case TensorId::kSinks:
            return c.sink_logit.has_value();
        case TensorId::kBias:
            return c.bias.has_value();
        case TensorId::kMask:
            return c.mask.has_value();
        case TensorId::kQDescale:
            return c.descaled && c.is_e4m3();
        case TensorId::kKDescale:
        case TensorId::kVDescale:
            return c.descaled;
        default:
            return true;
    }
}

TensorId buffer_of(const Case& c, TensorId id) {
    if (c.pool && id == TensorId::kV) return TensorId::kK;
    return c.qkv && (id == TensorId::kK || id == TensorId::kV) ? TensorId::kQ : id;
}

foveal_tensor& tensor_of(foveal_forward_args& args, TensorId id) {
    switch (id) {
        case TensorId::kQ:
            return args.q;
        case TensorId::kK:
            return args.k;
        case TensorId::kV:
            return args.v;
        case TensorId::kOut:
            return args.out;
        case TensorId::kLse:
            return args.lse;
        case TensorId::kAlibi:
            return args.alibi_slopes;
        case TensorId::kSinks:
            return args.sinks;
        case TensorId::kBias:
            return args.bias;
        case TensorId::kMask:
            return args.mask;
        case TensorId::kQDescale:
            return args.q_descale;
        case TensorId::kKDescale:
            return args.k_descale;
        case TensorId::kVDescale:
            return args.v_descale;
    }
    return args.q;
}

Axes axes_of(const Case& c, TensorId id) {
    const bool packed = id == TensorId::kK || id == TensorId::kV ? c.varlen_k : c.varlen;
    const int first = packed ? 0 : 1;
    const int sequence = packed ? -1 : 0;
    switch (id) {
        case TensorId::kLse:
            return {sequence, first + 1, first};
        case TensorId::kAlibi:
            return c.alibi == Alibi::kBySequenceAndHead ? Axes{0, -1, 1} : Axes{-1, -1, 0};
        case TensorId::kSinks:
            return {-1, -1, 0};
        case TensorId::kBias:
        case TensorId::kMask:
            return {0, 2, 1};
        case TensorId::kKDescale:
        case TensorId::kVDescale:
            if (c.row_descales) return {0, 1, 2};
            [[fallthrough]];
        case TensorId::kQDescale:
            return {0, -1, 1};
        default:
            return {sequence, first, first + 1};
    }
}

int64_t channels_of(const Case& c, TensorId id) {
    switch (id) {
        case TensorId::kQ:
        case TensorId::kK:
            return c.head_dim;
        case TensorId::kV:
        case TensorId::kOut:
            return c.head_dim_v;
        case TensorId::kBias:
        case TensorId::kMask:
            return c.rows_k;
        default:
            return 1;
    }
}

int64_t stride_along(const foveal_tensor& view, int dimension) {
    return dimension >= 0 && view.shape[dimension] > 1 ? view.stride[dimension] : 0;
}

int64_t channel_stride(const foveal_tensor& view, TensorId id) {
    return id == TensorId::kBias || id == TensorId::kMask ? stride_along(view, 3) : 1;
}

TensorLayout layout_of(const Case& c, TensorId id) {
    switch (id) {
        case TensorId::kQ:
            return lay_out_q(c);
        case TensorId::kK:
            return lay_out_k(c, false);
        case TensorId::kV:
            return lay_out_k(c, true);
        case TensorId::kOut:
            return lay_out_rows(c, c.out_dtype(), shape_of_q(c), c.heads_q, c.head_dim_v, true);
        case TensorId::kLse:
            return lay_out_lse(c);
        case TensorId::kAlibi:
            return lay_out_slopes(c);
        case TensorId::kSinks:
            return lay_out(FOVEAL_F32, {{0, c.heads_q, 0}}, false);
        case TensorId::kBias:
            return lay_out_scores(c, c.bias.value(), c.bias_dtype());
        case TensorId::kMask:
            return lay_out_scores(c, c.mask.value(), FOVEAL_BOOL);
        case TensorId::kKDescale:
        case TensorId::kVDescale:
            if (c.row_descales) return lay_out_row_descales(c);
            [[fallthrough]];
        case TensorId::kQDescale:
            return lay_out_descales(c);
    }
    return {};
}

foveal_forward_args shape_args(const Case& c, foveal_backend backend) {
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = backend;
    for (int i = 0; i < kTensors; ++i) {
        const auto id = static_cast<TensorId>(i);
        if (has_tensor(c, id)) tensor_of(args, id) = layout_of(c, id).view;
    }
    if (c.varlen) args.cu_seqlens_q = lengths_tensor(c.batch + 1);
    if (c.varlen_k) args.cu_seqlens_k = lengths_tensor(c.batch + 1);
    if (c.seqused_q) args.seqused_q = lengths_tensor(c.batch);
    if (lengths_to_give(c)) args.seqused_k = lengths_tensor(c.batch);
    if (c.query_offset) args.query_offset = lengths_tensor(c.batch);
    set_pages(c, args);
    set_tree(c, args);
    if (c.scale) args.scale = *c.scale;
    args.alignment = c.top_left ? FOVEAL_TOP_LEFT : FOVEAL_BOTTOM_RIGHT;
    args.window_left = c.window_left;
    args.window_right = c.window_right;
    args.chunk = c.chunk;
    args.softcap = c.softcap;
    args.dropout_p = c.dropout;
    return args;
}

}  // namespace foveal_testing
