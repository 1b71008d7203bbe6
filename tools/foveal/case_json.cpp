#include "case_json.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <vector>

namespace foveal_tool {
namespace {

using foveal_testing::Alibi;
using foveal_testing::CacheCase;
using foveal_testing::Case;
using foveal_testing::MergeCase;
using foveal_testing::ScoreMatrix;
using foveal_testing::SinkKey;
using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, 8> kShapeFields = {"batch",   "lengths_q", "lengths_k",  "heads_q",
                                                          "heads_k", "head_dim",  "head_dim_v", "dtype"};

template <class Value>
Json or_null(const std::optional<Value>& value) {
    return value ? Json(*value) : Json();
}

Json width_json(int64_t width) { return width == FOVEAL_UNLIMITED ? Json() : Json(width); }

Json alibi_json(Alibi alibi) {
    if (alibi == Alibi::kNone) return {};
    return alibi == Alibi::kByHead ? "h" : "bh";
}

// "bh", "1h", "b1" or "11", as in the text.
Json matrix_json(const std::optional<ScoreMatrix>& matrix) {
    if (!matrix) return {};
    std::string text = std::string(matrix->by_sequence ? "b" : "1") + (matrix->by_head ? "h" : "1");
    if (!matrix->by_query || !matrix->by_key) text += {matrix->by_query ? 'q' : '1', matrix->by_key ? 'k' : '1'};
    return text;
}

Json sink_keys_json(const std::vector<SinkKey>& keys) {
    constexpr const char* kPositions[] = {"first", "middle", "last"};
    Json list = Json::array();
    for (const SinkKey& key : keys)
        list.push_back({{"nats", key.nats}, {"position", kPositions[static_cast<int>(key.position)]}});
    return list;
}

// The lengths of the sequences, one by one.
Json lengths_json(const Case& c, int64_t (Case::*length)(int64_t) const) {
    Json list = Json::array();
    for (int64_t i = 0; i < c.batch; ++i) list.push_back((c.*length)(i));
    return list;
}

// The form of k and v, unless it is q's.
Json keys_json(const Case& c) {
    if (c.page_size > 0) return "pages";
    if (c.varlen == c.varlen_k) return {};
    return c.varlen_k ? "varlen" : "dense";
}

// A field that Case gains does not compile here until it has a name in the JSON too.
Json fields_of(const Case& c) {
    const auto& [batch, rows_q, rows_k, heads_q, heads_k, head_dim, head_dim_v, dtype, e4m3_keys, out_f16, descaled,
                 one_descale, row_descales, window_left, window_right, top_left, chunk, lse, scale, softcap, alibi,
                 sink_logit, bias, bias_f32, bias_inf, mask, dropout, dropout_state, varlen, varlen_k, lengths_q,
                 lengths_k, seqused_q, seqused_k, page_size, lists_pages, pool, common, page_order, query_offset, tree,
                 seed, logit_sd, sink_keys, grow_nats, flat, vmax, nan_value, padded, bhsd, qkv] = c;
    Json json;
    json["batch"] = batch;
    json["lengths_q"] = lengths_json(c, &Case::length_q);
    json["lengths_k"] = lengths_json(c, &Case::length_k);
    json["heads_q"] = heads_q;
    json["heads_k"] = heads_k;
    json["head_dim"] = head_dim;
    json["head_dim_v"] = head_dim_v;
    json["dtype"] = foveal_testing::dtype_name(dtype);
    json["keys_dtype"] = e4m3_keys ? Json("e4m3") : Json();
    json["out_f16"] = out_f16;
    json["descale"] = descaled;
    json["one_descale"] = one_descale;
    json["row_descales"] = row_descales;
    json["varlen"] = varlen;
    json["used_q"] = or_null(seqused_q);
    json["used_k"] = or_null(seqused_k);
    json["keys"] = keys_json(c);
    json["page_size"] = page_size > 0 ? Json(page_size) : Json();
    json["csr"] = lists_pages;
    json["pool"] = pool;
    json["common"] = common;
    json["page_order"] = page_order;
    json["query_offset"] = or_null(query_offset);
    json["tree"] = tree;
    json["window_left"] = width_json(window_left);
    json["window_right"] = width_json(window_right);
    json["alignment"] = top_left ? "top_left" : "bottom_right";
    json["chunk"] = chunk;
    json["scale"] = or_null(scale);
    json["softcap"] = softcap;
    json["alibi"] = alibi_json(alibi);
    json["sinks"] = or_null(sink_logit);
    json["bias"] = matrix_json(bias);
    json["bias_f32"] = bias_f32;
    json["bias_inf"] = bias_inf;
    json["mask"] = matrix_json(mask);
    json["dropout"] = dropout;
    json["dropout_state"] = or_null(dropout_state);
    json["lse"] = lse;
    json["seed"] = seed;
    json["logit_sd"] = or_null(logit_sd);
    json["sink_keys"] = sink_keys_json(sink_keys);
    json["grow_nats"] = grow_nats;
    json["flat"] = flat;
    json["vmax"] = vmax;
    json["nan_value"] = or_null(nan_value);
    json["pad"] = padded;
    json["bhsd"] = bhsd;
    json["qkv"] = qkv;
    return json;
}

Json options_of(const Json& fields) {
    static const Json plain = fields_of(foveal_testing::parse_case("s1 h1"));
    Json options = Json::array();
    for (const auto& [name, value] : fields.items()) {
        const bool of_shape = std::find(kShapeFields.begin(), kShapeFields.end(), name) != kShapeFields.end();
        if (!of_shape && value != plain[name]) options.push_back(name);
    }
    return options;
}

Json heading(const char* operation, const std::string& text) { return {{"operation", operation}, {"text", text}}; }

}  // namespace

Json case_json(const Case& c) {
    Json json = heading("forward", to_text(c));
    const Json fields = fields_of(c);
    json.update(fields);
    json["options"] = options_of(fields);
    json["visible_pairs"] = std::llround(c.visible_pairs());
    json["flops"] = std::llround(c.flops());
    json["bytes"] = std::llround(c.min_bytes());
    return json;
}

Json case_json(const CacheCase& c) {
    const auto& [operation, batch, rows, heads_q, heads_k, channels, page_size, dtype, seed] = c;
    Json json = heading(foveal_testing::operation_name(operation), to_text(c));
    json["batch"] = batch;
    json["rows"] = rows;
    json["heads_q"] = heads_q;
    json["heads_k"] = heads_k;
    json["head_dim"] = channels;
    json["page_size"] = page_size;
    json["dtype"] = foveal_testing::dtype_name(dtype);
    json["seed"] = seed;
    json["flops"] = std::llround(c.flops());
    json["bytes"] = std::llround(c.min_bytes());
    return json;
}

Json case_json(const MergeCase& c) {
    constexpr const char* kLayouts[] = {"packed", "odd", "bhsd"};
    const auto& [batch, rows, heads, channels, varlen, parts, dtype, out_dtype, layout, lse, seed] = c;
    Json json = heading("merge", to_text(c));
    json["parts"] = parts;
    json["batch"] = batch;
    json["rows"] = rows;
    json["heads"] = heads;
    json["head_dim"] = channels;
    json["varlen"] = varlen;
    json["dtype"] = foveal_testing::dtype_name(dtype);
    json["out_dtype"] = foveal_testing::dtype_name(out_dtype);
    json["layout"] = kLayouts[static_cast<int>(layout)];
    json["lse"] = lse;
    json["seed"] = seed;
    json["flops"] = std::llround(c.flops());
    json["bytes"] = std::llround(c.min_bytes());
    return json;
}

}  // namespace foveal_tool
