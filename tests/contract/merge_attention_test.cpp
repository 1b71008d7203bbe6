// Attention over parts of the keys, merged, is attention over all of them (contract 1.5).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/contract/merge_fixture.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/oracle.hpp"

namespace foveal_testing {
namespace {

using MergeAttention = Merge;
INSTANTIATE_TEST_SUITE_P(Cpu, MergeAttention, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, MergeAttention, testing::Values(FOVEAL_BACKEND_SM90));

// Where the keys of a sequence are cut: [n] to [n + 1] is part n.
using Cuts = std::vector<int64_t>;

// The case's call with keys [begin, end) alone.
foveal_forward_args args_of_keys(const CaseData& data, int64_t begin, int64_t end) {
    foveal_forward_args args = data.args();
    for (foveal_tensor* t : {&args.k, &args.v}) {
        t->data = static_cast<std::byte*>(t->data) +
                  begin * t->stride[1] * (data.the_case().keys_dtype() == FOVEAL_F32 ? 4 : 2);
        t->shape[1] = end - begin;
    }
    return args;
}

KeyValueHead read_head(CaseData& data, int64_t sequence, int64_t head_k, int64_t begin, int64_t end) {
    const Case& c = data.the_case();
    KeyValueHead head;
    head.len_k = end - begin;
    std::vector<float> k(static_cast<size_t>(head.len_k * c.head_dim));
    head.v.resize(static_cast<size_t>(head.len_k * c.head_dim_v));
    data.read(TensorId::kK, sequence, head_k, begin, head.len_k, k.data());
    data.read(TensorId::kV, sequence, head_k, begin, head.len_k, head.v.data());
    head.k_transposed.resize(k.size());
    for (int64_t j = 0; j < head.len_k; ++j)
        for (int64_t i = 0; i < c.head_dim; ++i)
            head.k_transposed[static_cast<size_t>(i * head.len_k + j)] = k[static_cast<size_t>(j * c.head_dim + i)];
    return head;
}

// What the textbook makes of it: partial results in the case's type and log-sum-exps in fp32, merged in fp32.
std::vector<float> reference_of_parts(const Case& c, int64_t row, const float* q,
                                      const std::vector<KeyValueHead>& parts, double lse) {
    std::vector<float> merged(static_cast<size_t>(c.head_dim_v));
    OracleRow oracle;
    ReferenceRow reference;
    for (const KeyValueHead& part : parts) {
        oracle_row(c, row, c.rows_q, q, part, {}, oracle);
        reference_row(c, row, c.rows_q, q, part, {}, reference);
        const float weight = std::exp(static_cast<float>(oracle.lse) - static_cast<float>(lse));
        for (size_t i = 0; i < merged.size(); ++i) merged[i] += weight * reference.out[i];
    }
    for (float& x : merged) x = round_to(c.dtype, x);
    return merged;
}

std::string judged_against_all_keys(CaseData& data, const Cuts& cuts, const std::vector<float>& out,
                                    const std::vector<float>& lse) {
    const Case& c = data.the_case();
    ErrorStatistics statistics(c.dtype);
    std::vector<float> q(static_cast<size_t>(c.head_dim));
    OracleRow oracle;
    for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
        for (int64_t head = 0; head < c.heads_q; ++head) {
            const int64_t head_k = head / c.group();
            const KeyValueHead all = read_head(data, sequence, head_k, 0, c.rows_k);
            std::vector<KeyValueHead> parts;
            for (size_t n = 0; n + 1 < cuts.size(); ++n)
                parts.push_back(read_head(data, sequence, head_k, cuts[n], cuts[n + 1]));
            for (int64_t row = 0; row < c.rows_q; ++row) {
                data.read(TensorId::kQ, sequence, head, row, 1, q.data());
                oracle_row(c, row, c.rows_q, q.data(), all, {}, oracle);
                const std::vector<float> reference = reference_of_parts(c, row, q.data(), parts, oracle.lse);
                const int64_t i = (sequence * c.rows_q + row) * c.heads_q + head;
                statistics.add_row(sequence, head, row, c.head_dim_v, out.data() + i * c.head_dim_v, oracle.out.data(),
                                   reference.data());
                statistics.add_lse(sequence, head, row,
                                   lse[static_cast<size_t>((sequence * c.heads_q + head) * c.rows_q + row)],
                                   oracle.lse);
            }
        }
    }
    return judge(statistics).failure;
}

TEST_P(MergeAttention, AttentionSplitByKeysIsAttentionOverAll) {
    for (const Cuts& cuts : {Cuts{0, 300}, Cuts{0, 150, 300}, Cuts{0, 0, 1, 300}, Cuts{0, 77, 77, 128, 300, 300}}) {
        for (const std::string type : {"f32", "bf16", "f16"}) {
            if (type == "f32" && backend() == FOVEAL_BACKEND_SM90) continue;
            for (const std::string values : {"", "sd10", "flat"}) {
                const std::string text = "b2 sq40 sk300 hq4 hk2 d64 lse " + type + " " + values;
                SCOPED_TRACE(text + ", cut into " + std::to_string(cuts.size() - 1));
                const auto data = make_case_data(parse_case(text), backend());
                const foveal_dtype dtype = data->the_case().dtype;
                const MergeCase c{.rows = 40,
                                  .heads = 4,
                                  .parts = static_cast<int32_t>(cuts.size() - 1),
                                  .dtype = dtype,
                                  .out_dtype = dtype};
                MergeData parts(backend(), c, draw_parts(c, 5));
                for (size_t n = 0; n + 1 < cuts.size(); ++n) {
                    foveal_forward_args args = args_of_keys(*data, cuts[n], cuts[n + 1]);
                    args.out = parts.outs[n].view();
                    args.lse = parts.lses[n].view();
                    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
                }
                foveal::merge(parts.parts(), parts.out.view(), options(parts.lse.view()));
                EXPECT_EQ(judged_against_all_keys(*data, cuts, parts.out.values(), parts.lse.values()), "");
            }
        }
    }
}

// ---- A prefix that all sequences share (docs/paged.md): two calls and a merge

// The first call: the queries of all sequences are one, in front of the common keys.
foveal_forward_args args_of_prefix(const CaseData& data, const foveal_tensor& length) {
    const Case& c = data.the_case();
    foveal_forward_args args = data.args();
    for (foveal_tensor* t : {&args.q, &args.out}) t->shape[0] = 1, t->shape[1] = c.batch * c.rows_q;
    args.lse.shape[0] = 1, args.lse.shape[2] = c.batch * c.rows_q;
    args.lse.stride[1] = c.batch * c.rows_q;
    args.block_table.shape[0] = 1;
    args.seqused_k = length;
    args.window_right = FOVEAL_UNLIMITED;
    return args;
}

// The second: each sequence's own keys, from its table's entry behind the common ones on.
foveal_forward_args args_of_own_keys(const CaseData& data, const foveal_tensor& lengths) {
    const Case& c = data.the_case();
    foveal_forward_args args = data.args();
    const int64_t entries = c.common / c.page_size;
    args.block_table.data = static_cast<int32_t*>(args.block_table.data) + entries;
    args.block_table.shape[1] -= entries;
    args.seqused_k = lengths;
    return args;
}

void run_with_prefix(foveal_backend backend, CaseData& data, MergeData& parts, const foveal::Tensor& out,
                     const foveal::Tensor& lse) {
    const Case& c = data.the_case();
    StridedTensor common(backend, FOVEAL_I32, {1}), own(backend, FOVEAL_I32, {c.batch});
    common.set({static_cast<float>(c.common)});
    std::vector<float> lengths;
    for (int64_t i = 0; i < c.batch; ++i) lengths.push_back(static_cast<float>(c.used_k(i) - c.common));
    own.set(lengths);
    foveal_forward_args prefix = args_of_prefix(data, common.view()), rest = args_of_own_keys(data, own.view());
    std::vector<foveal::Part> both = parts.parts();
    prefix.out.data = both[0].out.data, prefix.lse.data = both[0].lse.data;
    rest.out = both[1].out, rest.lse = both[1].lse;
    ASSERT_EQ(foveal_forward(&prefix, nullptr), FOVEAL_OK) << foveal_last_error();
    ASSERT_EQ(foveal_forward(&rest, nullptr), FOVEAL_OK) << foveal_last_error();
    // [1, h, b * s] seen as [b, h, s].
    both[0].lse.stride[0] = c.rows_q, both[0].lse.stride[1] = c.batch * c.rows_q;
    foveal::merge(both, out, {.lse = lse, .backend = static_cast<foveal::Backend>(backend)});
}

MergeCase two_parts_of(const Case& c) {
    return {.batch = c.batch,
            .rows = c.rows_q,
            .heads = c.heads_q,
            .channels = c.head_dim_v,
            .dtype = c.dtype,
            .out_dtype = c.dtype};
}

TEST_P(MergeAttention, APrefixThatAllSequencesShare) {
    for (const std::string type : {"f32", "bf16", "f16"})
        for (const std::string rows : {"b6 sq1 sk600", "b3 sq4 sk530", "b1 sq1 sk513"}) {
            const std::string text = rows + " hq8 hk2 d64 " + type + " full lse page16 common512";
            SCOPED_TRACE(text);
            const auto data = make_case_data(parse_case(text), backend());
            if (foveal_forward(&data->args(), nullptr) == FOVEAL_UNSUPPORTED && backend() == FOVEAL_BACKEND_SM90)
                GTEST_SKIP() << "SKIPPED: sm90: " << foveal_last_error();
            const Case& c = data->the_case();
            MergeData parts(backend(), two_parts_of(c), draw_parts(two_parts_of(c), 5));
            run_with_prefix(backend(), *data, parts, parts.out.view(), parts.lse.view());
            EXPECT_EQ(judged_against_all_keys(*data, {0, c.common, c.rows_k}, parts.out.values(), parts.lse.values()),
                      "");
        }
}

// Queries that come one behind the other, and lengths of their own, in f32: what one call over all keys has to be, by
// the same judge.
TEST_P(MergeAttention, APrefixBeforeCausalQueries) {
    if (backend() == FOVEAL_BACKEND_SM90) GTEST_SKIP() << "SKIPPED: sm90 has no f32";
    for (const std::string rows : {"b4 sq3 sk600 used_k=600,131,257,300", "b1 sq16 sk200", "b3 sq1 sk129"}) {
        const auto data = make_case_data(parse_case(rows + " hq8 hk2 d64 f32 causal lse page32 common128"), backend());
        const Case& c = data->the_case();
        MergeData parts(backend(), two_parts_of(c), draw_parts(two_parts_of(c), 5));
        foveal::Tensor out, lse;
        static_cast<foveal_tensor&>(out) = data->args().out, static_cast<foveal_tensor&>(lse) = data->args().lse;
        run_with_prefix(backend(), *data, parts, out, lse);
        EXPECT_EQ(verify(*data).failure, "") << rows;
    }
}

}  // namespace
}  // namespace foveal_testing
