// Append (contract 1.12): bit for bit what the contract says, and not a byte besides, on both backends.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/contract/append_fixture.hpp"

namespace foveal_testing {
namespace {

void skip_without(foveal_backend backend) {
    if (backend == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
}

// 24 at a time, so that a failing one is run again by its filter.
class AppendDrawn : public testing::TestWithParam<std::tuple<foveal_backend, uint32_t>> {
   protected:
    void SetUp() override { skip_without(std::get<0>(GetParam())); }
};

TEST_P(AppendDrawn, WritesWhatTheContractSays) {
    const auto [backend, group] = GetParam();
    for (uint32_t seed = 24 * group; seed < 24 * group + 24; ++seed) {
        const AppendCase c = draw_append_case(seed);
        SCOPED_TRACE(c.text());
        AppendData data(backend, c);
        foveal::append(data.options());
        EXPECT_EQ(data.differences(), "");
    }
}

INSTANTIATE_TEST_SUITE_P(Cpu, AppendDrawn,
                         testing::Combine(testing::Values(FOVEAL_BACKEND_CPU), testing::Range(0u, 25u)));
INSTANTIATE_TEST_SUITE_P(Sm90, AppendDrawn,
                         testing::Combine(testing::Values(FOVEAL_BACKEND_SM90), testing::Range(0u, 25u)));

// A library that ignores something is noticed, or refuses what is left.
TEST(CpuAppend, WhatIsIgnoredIsNoticed) {
    using Args = foveal::AppendOptions;
    const std::pair<const char*, std::function<void(Args&)>> ignored[] = {
        {"rotary_layout", [](Args& o) { o.rotary_layout = foveal::RotaryLayout::half_split; }},
        {"cos of each position", [](Args& o) { o.cos.stride[0] = 0; }},
        {"positions", [](Args& o) { o.positions.rank = o.cache_lengths.rank == 0 ? o.positions.rank : 0; }},
        {"k_scale", [](Args& o) { o.k_scale.rank = 0; }},
        {"v_scale of each head", [](Args& o) { o.v_scale.shape[0] = std::min<int64_t>(o.v_scale.shape[0], 1); }},
        {"block_table of each sequence", [](Args& o) { o.block_table.stride[0] = 0; }},
        {"q", [](Args& o) { o.q.rank = o.q_out.rank = o.k.rank + o.v.rank == 0 ? o.q.rank : 0; }},
        {"v", [](Args& o) { o.v.rank = o.v_cache.rank = o.k.rank + o.q.rank == 0 ? 1 : 0; }},
    };
    for (const auto& [name, ignore] : ignored) {
        bool noticed = false;
        for (uint32_t seed = 0; seed < 200 && !noticed; ++seed) {
            AppendData data(FOVEAL_BACKEND_CPU, draw_append_case(seed));
            Args options = data.options();
            ignore(options);
            try {
                foveal::append(options);
            } catch (const foveal::Error&) {
                continue;
            }
            noticed = !data.differences().empty();
        }
        EXPECT_TRUE(noticed) << name;
    }
}

class Append : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override { skip_without(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Cpu, Append, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, Append, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(Append, NothingToAppend) {
    AppendCase c{.batch = 0};
    AppendData data(GetParam(), c);
    foveal::append(data.options());
    EXPECT_EQ(data.differences(), "");
}

TEST_P(Append, ManyRows) {
    for (const int64_t rows : {1000, 3001}) {
        AppendCase c{.ragged = false, .batch = 2, .rows = rows, .pages = 500, .d = 128, .d_v = 128, .rot = 128};
        AppendData data(GetParam(), c);
        foveal::append(data.options());
        EXPECT_EQ(data.differences(), "");
    }
}

// K and V interleaved in one pool [pages, 2 * page_size, h_k, d].
TEST_P(Append, OnePool) {
    const int64_t pages = 9, page_size = 8, heads = 2, d = 32, rows = 6;
    StridedTensor pool(GetParam(), FOVEAL_BF16, {pages, 2 * page_size, heads, d});
    StridedTensor k(GetParam(), FOVEAL_BF16, {rows, heads, d}), v(GetParam(), FOVEAL_BF16, {rows, heads, d}),
        slots(GetParam(), FOVEAL_I64, {rows});
    const size_t n = static_cast<size_t>(rows * heads * d), page = static_cast<size_t>(page_size * heads * d);
    std::vector<float> ones(n, 1), twos(n, 2), expected(2 * page * static_cast<size_t>(pages), 0);
    k.set(ones), v.set(twos), pool.set(expected);
    slots.set({8 * 3 + 7, 0, 8 * 8 + 2, -5, 9, 10});
    foveal::AppendOptions options;
    options.k = k.view(), options.v = v.view(), options.slot_mapping = slots.view();
    const foveal::Tensor all = pool.view();
    const auto part = [&](int64_t which) {
        return foveal::Tensor::strided(static_cast<uint16_t*>(all.data) + which * page_size * heads * d,
                                       foveal::DType::bf16, {pages, page_size, heads, d},
                                       {2 * page_size * heads * d, heads * d, d, 1});
    };
    options.k_cache = part(0), options.v_cache = part(1);
    options.backend = static_cast<foveal::Backend>(GetParam());
    foveal::append(options);
    for (const int64_t slot : {8 * 3 + 7, 0, 8 * 8 + 2, 9, 10})
        for (size_t i = 0; i < static_cast<size_t>(heads * d); ++i) {
            const size_t row = static_cast<size_t>(slot % 8 * heads * d) + i;
            const size_t at = static_cast<size_t>(slot / 8) * 2 * page + row;
            expected[at] = 1, expected[at + page] = 2;
        }
    EXPECT_EQ(pool.values(), expected);
}

}  // namespace
}  // namespace foveal_testing
