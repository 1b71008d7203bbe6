// Merging of single rows by value: empty parts, infinities and NaN, log-sum-exps of any size (contract 1.5).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/contract/merge_fixture.hpp"

namespace foveal_testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using MergeValues = Merge;
INSTANTIATE_TEST_SUITE_P(Cpu, MergeValues, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, MergeValues, testing::Values(FOVEAL_BACKEND_SM90));

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

TEST_P(MergeValues, EmptyPartsCountNothingWhateverTheyHold) {
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

TEST_P(MergeValues, WhatIsNotFinitePropagates) {
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

TEST_P(MergeValues, LogSumExpsOfAnySize) {
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

}  // namespace
}  // namespace foveal_testing
