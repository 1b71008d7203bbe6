#include "tests/support/oracle_inputs.hpp"

#include "tests/support/case_pages.hpp"
#include "tests/support/dropout_oracle.hpp"

namespace foveal_testing {

KeyValueHead read_keys_and_values(CaseData& data, int64_t sequence, int64_t head_k) {
    const Case& c = data.the_case();
    KeyValueHead head;
    head.len_k = c.used_k(sequence);
    std::vector<float> k(static_cast<size_t>(head.len_k * c.head_dim));
    data.read(TensorId::kK, sequence, head_k, 0, head.len_k, k.data());
    head.k_transposed.resize(k.size());
    for (int64_t j = 0; j < head.len_k; ++j) {
        for (int64_t i = 0; i < c.head_dim; ++i) {
            head.k_transposed[static_cast<size_t>(i * head.len_k + j)] = k[static_cast<size_t>(j * c.head_dim + i)];
        }
    }
    head.v.resize(static_cast<size_t>(head.len_k * c.head_dim_v));
    data.read(TensorId::kV, sequence, head_k, 0, head.len_k, head.v.data());
    return head;
}

RowOptions read_options(CaseData& data, int64_t sequence, const RowId& id) {
    const Case& c = data.the_case();
    RowOptions options;
    const auto read = [&](TensorId tensor, float* to) { data.read(tensor, sequence, id.head_q, id.row, 1, to); };
    if (c.alibi != Alibi::kNone) read(TensorId::kAlibi, &options.slope);
    if (c.sink_logit) read(TensorId::kSinks, &options.sink.emplace());
    // Of these the first len_k are read.
    if (c.bias) options.bias.resize(static_cast<size_t>(c.rows_k)), read(TensorId::kBias, options.bias.data());
    if (c.mask) options.visible.resize(static_cast<size_t>(c.rows_k)), read(TensorId::kMask, options.visible.data());
    if (c.dropout > 0) options.kept = kept_keys(c, sequence, id.head_q, id.row, c.used_k(sequence));
    options.query_offset = c.offset_of(sequence);
    if (!c.tree) return options;
    options.visible.resize(static_cast<size_t>(c.rows_k), 1.0f);
    for (int64_t key = 0; key < c.used_k(sequence); ++key)
        if (tree_hides(c, sequence, id.row, key)) options.visible[static_cast<size_t>(key)] = 0;
    return options;
}

}  // namespace foveal_testing
