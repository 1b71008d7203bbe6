// Merging of partial results (contract 1.5), on both backends.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using foveal::Part;

// ---- partial results and their oracle -------------------------------------------------------------------------------

enum class Layout { kPacked, kOddStrides, kHeadsFirst };

struct MergeCase {
    int64_t batch = 2, rows = 37, heads = 3, channels = 64;
    bool varlen = false;  // batch 1
    int32_t parts = 2;
    foveal_dtype dtype = FOVEAL_F32, out_dtype = FOVEAL_F32;
    Layout layout = Layout::kPacked;

    Shape out_shape() const { return varlen ? Shape{rows, heads, channels} : Shape{batch, rows, heads, channels}; }
    Shape lse_shape() const { return varlen ? Shape{heads, rows} : Shape{batch, heads, rows}; }
    int64_t all_rows() const { return batch * rows * heads; }
    // Place of row i, counted as in out, among the log-sum-exps.
    size_t lse_index(int64_t i) const {
        const int64_t head = i % heads, row = i / heads % rows, sequence = i / heads / rows;
        return static_cast<size_t>((sequence * heads + head) * rows + row);
    }
};

std::string text_of(const MergeCase& c) {
    return std::to_string(c.parts) + " parts of " + dtype_name(c.dtype) + " to " + dtype_name(c.out_dtype) +
           (c.varlen ? ", varlen" : "") + ", b" + std::to_string(c.batch) + " s" + std::to_string(c.rows) + " h" +
           std::to_string(c.heads) + " d" + std::to_string(c.channels) + ", layout " +
           std::to_string(static_cast<int>(c.layout));
}

Shape strides_of(const Shape& shape, Layout layout) {
    if (layout == Layout::kPacked) return packed_strides(shape);
    if (layout == Layout::kOddStrides) return packed_strides(shape, 1);
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::swap(order[shape.size() - 3], order[shape.size() - 2]);
    return strides_in_order(shape, order, 8);
}

StridedTensor out_tensor(foveal_backend backend, const MergeCase& c, foveal_dtype dtype) {
    // An odd offset in 2-byte elements: no 16-byte load fits.
    return StridedTensor(backend, dtype, c.out_shape(), strides_of(c.out_shape(), c.layout),
                         c.layout == Layout::kOddStrides ? 17 : 16);
}

StridedTensor lse_tensor(foveal_backend backend, const MergeCase& c) {
    return StridedTensor(backend, FOVEAL_F32, c.lse_shape(),
                         packed_strides(c.lse_shape(), c.layout == Layout::kPacked ? 0 : 3));
}

// The values of partial results, outs rounded to the case's type: out [rows of out][channels], lse as lse_shape().
struct PartialValues {
    std::vector<std::vector<float>> outs, lses;
};

// Normal values; about one part in six of a row is empty, with NaN in its out, and all of row 0 are.
PartialValues draw_parts(const MergeCase& c, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    PartialValues values;
    for (int32_t n = 0; n < c.parts; ++n) {
        std::vector<float> out(static_cast<size_t>(elements_of(c.out_shape())));
        std::vector<float> lse(static_cast<size_t>(elements_of(c.lse_shape())));
        for (float& x : out) x = round_to(c.dtype, normal(random));
        for (int64_t i = 0; i < c.all_rows(); ++i) {
            const bool empty = i == 0 || random() % 6 == 0;
            lse[c.lse_index(i)] = empty ? -kInf : 20 + 3 * normal(random);
            if (!empty) continue;
            std::fill_n(out.begin() + i * c.channels, c.channels, kNan);
        }
        values.outs.push_back(std::move(out));
        values.lses.push_back(std::move(lse));
    }
    return values;
}

struct MergedRow {
    std::vector<double> out;
    std::vector<float> reference;  // the textbook's formula in fp32, rounded to the type of out
    double lse;
};

MergedRow merged_row(const MergeCase& c, const PartialValues& values, int64_t i) {
    MergedRow row{std::vector<double>(static_cast<size_t>(c.channels)), {}, -HUGE_VAL};
    double largest = -HUGE_VAL, sum = 0;
    for (const auto& lse : values.lses) largest = std::max(largest, double{lse[c.lse_index(i)]});
    std::vector<float> reference(static_cast<size_t>(c.channels));
    if (largest > -HUGE_VAL) {
        for (const auto& lse : values.lses) sum += std::exp(lse[c.lse_index(i)] - largest);
        row.lse = largest + std::log(sum);
    }
    for (size_t n = 0; n < values.lses.size(); ++n) {
        const float lse = values.lses[n][c.lse_index(i)];
        if (lse == -kInf) continue;
        const float* out = values.outs[n].data() + i * c.channels;
        for (size_t j = 0; j < row.out.size(); ++j) {
            row.out[j] += std::exp(lse - row.lse) * out[j];
            reference[j] += std::exp(lse - static_cast<float>(row.lse)) * out[j];
        }
    }
    for (const float x : reference) row.reference.push_back(round_to(c.out_dtype, x));
    return row;
}

// ---- fixture --------------------------------------------------------------------------------------------------------

class Merge : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (GetParam() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    foveal_backend backend() const { return GetParam(); }
    foveal::MergeOptions options(const foveal::Tensor& lse = {}) const {
        return {.lse = lse, .backend = static_cast<foveal::Backend>(GetParam())};
    }
};

INSTANTIATE_TEST_SUITE_P(Cpu, Merge, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, Merge, testing::Values(FOVEAL_BACKEND_SM90));

// The tensors of one merge.
struct MergeData {
    MergeData(foveal_backend backend, const MergeCase& c, const PartialValues& values)
        : out(out_tensor(backend, c, c.out_dtype)), lse(lse_tensor(backend, c)) {
        for (int32_t n = 0; n < c.parts; ++n) {
            outs.push_back(out_tensor(backend, c, c.dtype));
            outs.back().set(values.outs[static_cast<size_t>(n)]);
            lses.push_back(lse_tensor(backend, c));
            lses.back().set(values.lses[static_cast<size_t>(n)]);
        }
    }

    std::vector<Part> parts() {
        std::vector<Part> all;
        for (size_t n = 0; n < outs.size(); ++n) all.push_back({outs[n].view(), lses[n].view()});
        return all;
    }

    std::vector<StridedTensor> outs, lses;
    StridedTensor out, lse;
};

std::string judged(const MergeCase& c, const PartialValues& values, const std::vector<float>& out,
                   const std::vector<float>& lse) {
    ErrorStatistics statistics(c.out_dtype);
    for (int64_t i = 0; i < c.all_rows(); ++i) {
        const MergedRow row = merged_row(c, values, i);
        const int64_t head = i % c.heads, r = i / c.heads % c.rows, sequence = i / c.heads / c.rows;
        statistics.add_row(sequence, head, r, c.channels, out.data() + i * c.channels, row.out.data(),
                           row.reference.data());
        statistics.add_lse(sequence, head, r, lse[c.lse_index(i)], row.lse);
    }
    return judge(statistics).failure;
}

void expect_merges(foveal_backend backend, const MergeCase& c, const foveal::MergeOptions& options) {
    SCOPED_TRACE(text_of(c));
    const PartialValues values = draw_parts(c, 1);
    MergeData data(backend, c, values);
    foveal::MergeOptions with_lse = options;
    with_lse.lse = data.lse.view();
    foveal::merge(data.parts(), data.out.view(), with_lse);
    EXPECT_EQ(judged(c, values, data.out.values(), data.lse.values()), "");
    EXPECT_TRUE(data.out.surroundings_untouched());
    EXPECT_TRUE(data.lse.surroundings_untouched());
}

// ---- what is computed -----------------------------------------------------------------------------------------------

struct Types {
    foveal_dtype in, out;
};
constexpr Types kTypes[] = {{FOVEAL_F32, FOVEAL_F32},
                            {FOVEAL_BF16, FOVEAL_BF16},
                            {FOVEAL_BF16, FOVEAL_F32},
                            {FOVEAL_F16, FOVEAL_F16},
                            {FOVEAL_F16, FOVEAL_F32}};

TEST_P(Merge, AnyNumberOfPartsOfAnyType) {
    for (const Types& types : kTypes)
        for (const int32_t parts : {1, 2, 3, 8, 31, 32})
            expect_merges(backend(), {.parts = parts, .dtype = types.in, .out_dtype = types.out}, options());
}

TEST_P(Merge, AnyShape) {
    for (const Types& types : kTypes) {
        for (const int64_t channels : {1, 5, 8, 20, 128, 200, 512, 4100}) {
            MergeCase c{.rows = 19, .channels = channels, .parts = 3, .dtype = types.in, .out_dtype = types.out};
            expect_merges(backend(), c, options());
        }
        for (const int64_t rows : {1, 2, 63, 64, 65, 500})
            for (const bool varlen : {false, true})
                expect_merges(backend(),
                              {.batch = varlen ? 1 : 3,
                               .rows = rows,
                               .channels = 16,
                               .varlen = varlen,
                               .dtype = types.in,
                               .out_dtype = types.out},
                              options());
        expect_merges(backend(),
                      {.batch = 300, .rows = 1, .heads = 8, .parts = 4, .dtype = types.in, .out_dtype = types.out},
                      options());
    }
}

TEST_P(Merge, FreeStrides) {
    for (const Types& types : kTypes)
        for (const Layout layout : {Layout::kOddStrides, Layout::kHeadsFirst})
            for (const bool varlen : {false, true})
                for (const int64_t channels : {24, 128})
                    expect_merges(backend(),
                                  {.batch = varlen ? 1 : 2,
                                   .channels = channels,
                                   .varlen = varlen,
                                   .parts = 3,
                                   .dtype = types.in,
                                   .out_dtype = types.out,
                                   .layout = layout},
                                  options());
}

TEST_P(Merge, WithoutLse) {
    const MergeCase c{.parts = 3};
    const PartialValues values = draw_parts(c, 2);
    MergeData with(backend(), c, values), without(backend(), c, values);
    foveal::merge(with.parts(), with.out.view(), options(with.lse.view()));
    foveal::merge(without.parts(), without.out.view(), options());
    EXPECT_EQ(without.out.bytes(), with.out.bytes());
}

TEST_P(Merge, AutoIsWhereThePartsLie) {
    const MergeCase c{};
    const PartialValues values = draw_parts(c, 2);
    MergeData data(backend(), c, values);
    foveal::merge(data.parts(), data.out.view(), {.lse = data.lse.view()});
    EXPECT_EQ(judged(c, values, data.out.values(), data.lse.values()), "");
}

TEST_P(Merge, IntoOneOfTheParts) {
    for (const Types& types : kTypes) {
        if (types.in != types.out) continue;
        const MergeCase c{.channels = 136, .parts = 5, .dtype = types.in, .out_dtype = types.out};
        const PartialValues values = draw_parts(c, 3);
        MergeData apart(backend(), c, values);
        foveal::merge(apart.parts(), apart.out.view(), options(apart.lse.view()));
        for (size_t n = 0; n < apart.outs.size(); ++n) {
            MergeData data(backend(), c, values);
            foveal::merge(data.parts(), data.outs[n].view(), options(data.lses[n].view()));
            EXPECT_EQ(data.outs[n].bytes(), apart.out.bytes()) << n;
            EXPECT_EQ(data.lses[n].bytes(), apart.lse.bytes()) << n;
        }
    }
}

// Parts that are views of one buffer [rows, parts, h, d], as a kernel that splits the keys may leave them.
TEST_P(Merge, InterleavedParts) {
    const MergeCase c{.batch = 1, .rows = 50, .heads = 4, .channels = 32, .varlen = true, .parts = 3};
    const PartialValues values = draw_parts(c, 4);
    MergeData apart(backend(), c, values);
    foveal::merge(apart.parts(), apart.out.view(), options(apart.lse.view()));

    const int64_t part_elements = c.heads * c.channels;
    std::vector<float> all(static_cast<size_t>(c.rows * c.parts * part_elements));
    for (int64_t row = 0; row < c.rows; ++row)
        for (int32_t n = 0; n < c.parts; ++n)
            std::copy_n(values.outs[static_cast<size_t>(n)].begin() + row * part_elements, part_elements,
                        all.begin() + (row * c.parts + n) * part_elements);
    StridedTensor buffer(backend(), FOVEAL_F32, {c.rows, c.parts, c.heads, c.channels});
    buffer.set(all);
    std::vector<Part> parts = apart.parts();
    for (int32_t n = 0; n < c.parts; ++n) {
        foveal::Tensor& out = parts[static_cast<size_t>(n)].out;
        out.data = static_cast<float*>(buffer.view().data) + n * part_elements;
        out.stride[0] = c.parts * part_elements;
    }
    foveal::merge(parts, parts[1].out, options());
    const std::vector<float> expected = apart.out.values(), got = buffer.values();
    for (int64_t row = 0; row < c.rows; ++row)
        for (int64_t i = 0; i < part_elements; ++i)
            ASSERT_EQ(got[static_cast<size_t>((row * c.parts + 1) * part_elements + i)],
                      expected[static_cast<size_t>(row * part_elements + i)]);
}

// ---- special values -------------------------------------------------------------------------------------------------

// One row of one channel: its merged out and lse.
struct Merged {
    float out, lse;
};

Merged merge_scalars(foveal_backend backend, const foveal::MergeOptions& options, const std::vector<float>& outs,
                     const std::vector<float>& lses) {
    const MergeCase c{.batch = 1, .rows = 1, .heads = 1, .channels = 1, .parts = static_cast<int32_t>(outs.size())};
    PartialValues values;
    for (size_t n = 0; n < outs.size(); ++n) {
        values.outs.push_back({outs[n]});
        values.lses.push_back({lses[n]});
    }
    MergeData data(backend, c, values);
    foveal::MergeOptions with_lse = options;
    with_lse.lse = data.lse.view();
    foveal::merge(data.parts(), data.out.view(), with_lse);
    return {data.out.values()[0], data.lse.values()[0]};
}

TEST_P(Merge, EmptyPartsCountNothingWhateverTheyHold) {
    const auto merged = [&](const std::vector<float>& outs, const std::vector<float>& lses) {
        return merge_scalars(backend(), options(), outs, lses);
    };
    for (const float junk : {0.0f, kNan, kInf, -kInf}) {
        for (const Merged& row :
             {merged({junk, 3.5f}, {-kInf, 2}), merged({3.5f, junk}, {2, -kInf}), merged({3.5f}, {2})}) {
            EXPECT_EQ(row.out, 3.5f);
            EXPECT_EQ(row.lse, 2.0f);
        }
        for (const Merged& row : {merged({junk}, {-kInf}), merged({junk, kNan, junk}, {-kInf, -kInf, -kInf})}) {
            EXPECT_EQ(row.out, 0.0f);
            EXPECT_FALSE(std::signbit(row.out));
            EXPECT_EQ(row.lse, -kInf);
        }
    }
}

TEST_P(Merge, WhatIsNotFinitePropagates) {
    const auto merged = [&](const std::vector<float>& outs, const std::vector<float>& lses) {
        return merge_scalars(backend(), options(), outs, lses);
    };
    for (const Merged& row : {merged({1, 2}, {kNan, 0}), merged({1, 2}, {0, kNan}), merged({1, 2}, {-kInf, kNan}),
                              merged({1}, {kNan}), merged({1, 2}, {kNan, kInf})}) {
        EXPECT_TRUE(std::isnan(row.out));
        EXPECT_TRUE(std::isnan(row.lse));
    }
    // log(exp(inf) + ...) is inf, and exp(inf - inf) NaN.
    for (const Merged& row : {merged({1, 2}, {kInf, 0}), merged({1, 2}, {-100, kInf}), merged({1}, {kInf}),
                              merged({1, 2}, {kInf, kInf}), merged({1, 2}, {-kInf, kInf})}) {
        EXPECT_TRUE(std::isnan(row.out));
        EXPECT_EQ(row.lse, kInf);
    }
    EXPECT_EQ(merged({kInf, 1}, {0, 0}).out, kInf);
    EXPECT_TRUE(std::isnan(merged({kInf, -kInf}, {0, 0}).out));
    EXPECT_TRUE(std::isnan(merged({1, kNan}, {0, -50}).out));
    EXPECT_TRUE(std::isnan(merged({1, kInf}, {0, -1e6f}).out));  // a weight of 0 times inf
}

TEST_P(Merge, LogSumExpsOfAnySize) {
    const auto merged = [&](const std::vector<float>& outs, const std::vector<float>& lses) {
        return merge_scalars(backend(), options(), outs, lses);
    };
    for (const float huge : {1e30f, -1e30f, 3e38f, -3e38f}) {
        const Merged row = merged({1, 3}, {huge, huge});
        EXPECT_EQ(row.out, 2.0f);
        EXPECT_EQ(row.lse, huge);
    }
    const Merged row = merged({1, 3}, {3e38f, -3e38f});
    EXPECT_EQ(row.out, 1.0f);
    EXPECT_EQ(row.lse, 3e38f);
}

// ---- attention ------------------------------------------------------------------------------------------------------

// Where the keys of a sequence are cut: [n] to [n + 1] is part n.
using Cuts = std::vector<int64_t>;

// The case's call with keys [begin, end) alone.
foveal_forward_args args_of_keys(const CaseData& data, int64_t begin, int64_t end) {
    foveal_forward_args args = data.args();
    for (foveal_tensor* t : {&args.k, &args.v}) {
        t->data = static_cast<std::byte*>(t->data) + begin * t->stride[1] * data.the_case().element_bytes();
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

TEST_P(Merge, AttentionSplitByKeysIsAttentionOverAll) {
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

TEST_P(Merge, MergedResultsMergeAgain) {
    const MergeCase c{.parts = 6};
    const PartialValues values = draw_parts(c, 6);
    MergeData data(backend(), c, values);
    const std::vector<Part> parts = data.parts();
    foveal::merge(parts[0], parts[1], parts[0].out, options(parts[0].lse));
    foveal::merge(std::span(parts).subspan(2), parts[2].out, options(parts[2].lse));
    foveal::merge(parts[0], parts[2], data.out.view(), options(data.lse.view()));
    EXPECT_EQ(judged(c, values, data.out.values(), data.lse.values()), "");
}

TEST_P(Merge, SameBitsOnEveryRun) {
    const MergeCase c{.rows = 200, .parts = 7, .dtype = FOVEAL_BF16, .out_dtype = FOVEAL_BF16};
    const PartialValues values = draw_parts(c, 7);
    MergeData data(backend(), c, values);
    foveal::merge(data.parts(), data.out.view(), options());
    const std::vector<std::byte> first = data.out.bytes();
    for (int run = 0; run < 5; ++run) {
        foveal::merge(data.parts(), data.out.view(), options());
        ASSERT_EQ(data.out.bytes(), first);
    }
}

// ---- nothing to do, and what is refused -----------------------------------------------------------------------------

TEST_P(Merge, NothingToMerge) {
    for (const Shape& shape : {Shape{0, 3, 2, 8}, Shape{2, 0, 2, 8}, Shape{2, 3, 0, 8}}) {
        const MergeCase c{.batch = shape[0], .rows = shape[1], .heads = shape[2], .channels = shape[3]};
        expect_merges(backend(), c, options());
        foveal::Tensor out = foveal::Tensor::packed(static_cast<void*>(nullptr), foveal::DType::f32,
                                                    {shape[0], shape[1], shape[2], shape[3]});
        foveal::Tensor lse =
            foveal::Tensor::packed(static_cast<void*>(nullptr), foveal::DType::f32, {shape[0], shape[2], shape[1]});
        foveal::merge({out, lse}, {out, lse}, out, options(lse));
    }
    // Rows without channels have a log-sum-exp.
    const MergeCase c{.channels = 0, .parts = 3};
    const PartialValues values = draw_parts(c, 8);
    MergeData data(backend(), c, values);
    std::vector<Part> parts = data.parts();
    for (Part& part : parts) part.out.data = nullptr;
    foveal::merge(parts, parts[0].out, options(data.lse.view()));
    EXPECT_EQ(judged(c, values, {}, data.lse.values()), "");
}

// A merge of two that is right until `spoil` has changed it; the message must hold all the words.
template <class Spoil>
void expect_refused(const char* what, const std::vector<std::string>& words, Spoil&& spoil) {
    const MergeCase c{.parts = 2};
    MergeData data(FOVEAL_BACKEND_CPU, c, draw_parts(c, 9));
    foveal_tensor outs[] = {data.outs[0].view(), data.outs[1].view()};
    foveal_tensor lses[] = {data.lses[0].view(), data.lses[1].view()};
    foveal_merge_args args;
    foveal_merge_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.parts = 2;
    args.outs = outs;
    args.lses = lses;
    args.out = data.out.view();
    args.lse = data.lse.view();
    ASSERT_EQ(foveal_merge(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    const std::vector<std::byte> out = data.out.bytes();
    spoil(args, outs, lses);
    EXPECT_EQ(foveal_merge(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << what;
    for (const std::string& word : words)
        EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
            << what << ": " << foveal_last_error() << " lacks " << word;
    EXPECT_EQ(data.out.bytes(), out) << what;
}

using Args = foveal_merge_args;

TEST(CpuMergeRefuses, ShapesAndTypes) {
    expect_refused("rank 2", {"outs[0].rank", "2", "3"}, [](Args&, auto* outs, auto*) { outs[0].rank = 2; });
    expect_refused("rank 5", {"outs[1].rank", "5"}, [](Args&, auto* outs, auto*) { outs[1].rank = 5; });
    expect_refused("no rank", {"outs[0].rank", "0"}, [](Args&, auto* outs, auto*) { outs[0].rank = 0; });
    expect_refused("rank of out", {"out.rank", "3"}, [](Args& args, auto*, auto*) { args.out.rank = 3; });
    expect_refused("no out", {"out.rank", "0"}, [](Args& args, auto*, auto*) { args.out.rank = 0; });
    expect_refused("rank of lse", {"lses[1].rank", "2"}, [](Args&, auto*, auto* lses) { lses[1].rank = 2; });
    expect_refused("rank -1", {"lse.rank", "-1"}, [](Args& args, auto*, auto*) { args.lse.rank = -1; });
    expect_refused("i32", {"outs[0].dtype", "i32"}, [](Args&, auto* outs, auto*) { outs[0].dtype = FOVEAL_I32; });
    expect_refused("mixed", {"outs[1].dtype", "bf16", "f32"},
                   [](Args&, auto* outs, auto*) { outs[1].dtype = FOVEAL_BF16; });
    expect_refused("narrower out", {"out.dtype", "f16", "f32"},
                   [](Args& args, auto*, auto*) { args.out.dtype = FOVEAL_F16; });
    expect_refused("bf16 lse", {"lses[0].dtype", "bf16"}, [](Args&, auto*, auto* l) { l[0].dtype = FOVEAL_BF16; });
    expect_refused("rows", {"outs[1].shape[1]", "36", "37"}, [](Args&, auto* outs, auto*) { outs[1].shape[1] = 36; });
    expect_refused("channels", {"out.shape[3]", "63", "64"}, [](Args& args, auto*, auto*) { args.out.shape[3] = 63; });
    expect_refused("lse rows", {"lses[1].shape[2]", "38"}, [](Args&, auto*, auto* lses) { lses[1].shape[2] = 38; });
    expect_refused("lse heads", {"lse.shape[1]", "4"}, [](Args& args, auto*, auto*) { args.lse.shape[1] = 4; });
    expect_refused("negative", {"outs[0].shape[0]", "-2"},
                   [](Args& args, auto* outs, auto*) { outs[0].shape[0] = outs[1].shape[0] = args.out.shape[0] = -2; });
}

TEST(CpuMergeRefuses, StridesAndOverlaps) {
    expect_refused("stride 0", {"outs[1].stride[1]", "0"}, [](Args&, auto* outs, auto*) { outs[1].stride[1] = 0; });
    expect_refused("last stride", {"out.stride[3]", "2"}, [](Args& args, auto*, auto*) { args.out.stride[3] = 2; });
    expect_refused("lse stride", {"lses[0].stride[2]", "2"}, [](Args&, auto*, auto* l) { l[0].stride[2] = 2; });
    expect_refused("beyond 64 bits", {"outs[0]", "beyond"},
                   [](Args&, auto* outs, auto*) { outs[0].stride[0] = INT64_MAX; });
    expect_refused("out on itself", {"out", "overlap"}, [](Args& args, auto*, auto*) { args.out.stride[1] = 64; });
    expect_refused("part of a part", {"out", "outs[1]", "in part"},
                   [](Args& args, auto* outs, auto*) { args.out.data = static_cast<float*>(outs[1].data) + 64; });
    expect_refused("another order", {"out", "outs[0]", "in part"}, [](Args& args, auto* outs, auto*) {
        args.out.data = outs[0].data;
        args.out.stride[1] = 64;
        args.out.stride[2] = 37 * 64;
    });
    expect_refused("lse on a part's", {"lse", "lses[0]", "in part"},
                   [](Args& args, auto*, auto* lses) { args.lse.data = static_cast<float*>(lses[0].data) + 1; });
    expect_refused("lse on a part", {"lse", "outs[0]", "apart"},
                   [](Args& args, auto* outs, auto*) { args.lse.data = outs[0].data; });
    expect_refused("an lse on out", {"out", "lses[1]", "apart"},
                   [](Args& args, auto*, auto* lses) { lses[1].data = args.out.data; });
}

TEST(CpuMergeRefuses, Options) {
    expect_refused("parts 0", {"parts", "0", "32"}, [](Args& args, auto*, auto*) { args.parts = 0; });
    expect_refused("parts -1", {"parts", "-1"}, [](Args& args, auto*, auto*) { args.parts = -1; });
    expect_refused("parts 33", {"parts", "33", "32"}, [](Args& args, auto*, auto*) { args.parts = 33; });
    expect_refused("backend 5", {"backend", "5"}, [](Args& args, auto*, auto*) { args.backend = 5; });
    expect_refused("reserved", {"reserved", "1"}, [](Args& args, auto*, auto*) { args.reserved = 1; });
    expect_refused("struct_size", {"struct_size", "8", "foveal_merge_args_init"},
                   [](Args& args, auto*, auto*) { args.struct_size = 8; });
    const std::vector<Part> parts(33);
    EXPECT_THROW(foveal::merge(parts, {}), foveal::Error);
    EXPECT_THROW(foveal::merge(std::span<const Part>{}, {}), foveal::Error);
}

}  // namespace
}  // namespace foveal_testing
