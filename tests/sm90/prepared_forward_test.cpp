// What the plan prepares for the launch: the kernel's parameters follow from the problem, and no pointer is in them.
#include <gtest/gtest.h>

#include "sm90/forward/plan.hpp"

namespace foveal::sm90 {
namespace {

ForwardProblem problem() {
    ForwardProblem p;
    p.dtype = DType::bf16;
    p.batch = 2;
    p.rows_q = p.rows_k = 512;
    p.heads_q = 8;
    p.heads_k = 2;
    p.head_dim = p.head_dim_v = 128;
    p.q = p.out = {512 * 8 * 128, 8 * 128, 128};
    p.k = p.v = {512 * 2 * 128, 2 * 128, 128};
    p.scale = 0.5f;
    p.window_right = 0;
    return p;
}

TEST(PreparedForward, HoldsAllThatFollowsFromTheProblem) {
    const Sm90ForwardPlan plan(problem(), -1, {});
    const ForwardParams& params = plan.kernel().params;
    EXPECT_EQ(params.rows_q, 512);
    EXPECT_EQ(params.out_row_stride, 8 * 128);
    EXPECT_FLOAT_EQ(params.scale_log2, static_cast<float>(0.5 * kLog2E));
    EXPECT_EQ(params.order.units, 2 * 2);
    EXPECT_TRUE(params.order.last_rows_first);
    EXPECT_EQ(params.out, nullptr);
    EXPECT_EQ(params.lse, nullptr);
    EXPECT_EQ(params.cu_seqlens_q, nullptr);
}

TEST(PreparedForward, NothingIsLaunchedWhereThereIsNothingToCompute) {
    ForwardProblem empty = problem();
    empty.rows_q = 0;
    EXPECT_EQ(Sm90ForwardPlan(empty, -1, {}).kernel().schedule.grid, 0);
    EXPECT_GT(Sm90ForwardPlan(problem(), -1, {}).kernel().schedule.grid, 0);
}

// Bits follow from the kernel: so a bias has one, wherever its elements lie.
TEST(PreparedForward, ABiasTakesOneKernelWhateverItsStrides) {
    ForwardProblem p = problem();
    p.has_bias = true;
    p.bias_dtype = DType::bf16;
    const struct {
        ScoreStrides strides;
        bool in_vectors;
    } kinds[] = {{{{0, 512, 512 * 512}, 1}, true},
                 {{{512, 0, 0}, 1}, true},
                 {{{0, 513, 0}, 1}, false},
                 {{{0, 0, 4}, 1}, false},
                 {{{0, 512, 0}, 0}, false}};
    for (const auto& kind : kinds) {
        p.bias = kind.strides;
        const Sm90ForwardPlan plan(p, -1, {});
        EXPECT_TRUE(is_bias(plan.kernel().schedule.choice.variant));
        EXPECT_EQ(plan.kernel().params.scores.bias.in_vectors, kind.in_vectors);
        EXPECT_EQ(plan.kernel().params.scores.bias.key_stride, kind.strides.key);
    }
}

// Slopes, sinks and lengths that are one for all are known to the kernels with options alone.
TEST(PreparedForward, OneValueForAllTakesAKernelThatKnowsOfIt) {
    const auto variant_of = [](auto set) {
        ForwardProblem p = problem();
        set(p);
        return Sm90ForwardPlan(p, -1, {}).kernel().schedule.choice.variant;
    };
    EXPECT_EQ(variant_of([](auto& p) { p.has_sinks = true, p.sinks.head = 1; }), ForwardVariant::plain);
    EXPECT_EQ(variant_of([](auto& p) { p.has_sinks = true, p.sinks.head = 0; }), ForwardVariant::options);
    EXPECT_EQ(variant_of([](auto& p) { p.has_seqused_k = true; }), ForwardVariant::plain);
    EXPECT_EQ(variant_of([](auto& p) { p.has_seqused_k = true, p.seqused_k_stride = 0; }), ForwardVariant::options);
    EXPECT_EQ(variant_of([](auto& p) { p.softcap = 50; }), ForwardVariant::softcap);
    EXPECT_EQ(variant_of([](auto& p) { p.softcap = 1e4; }), ForwardVariant::options);
}

TEST(PreparedForward, TheGridIsThatOfTheDevice) {
    cuda::DeviceTraits small;
    small.sms = 7;
    EXPECT_EQ(Sm90ForwardPlan(problem(), -1, small).kernel().schedule.grid, 7);
}

TEST(PreparedForward, SlowDramGetsSeveralCtasAnSmWhereTilesAreShortAndMany) {
    cuda::DeviceTraits h100;
    h100.dram_bytes_per_second = 3.35e12;
    const auto grid_of = [](const ForwardProblem& p, const cuda::DeviceTraits& traits) {
        return Sm90ForwardPlan(p, -1, traits).kernel().schedule.grid;
    };
    ForwardProblem p = problem();
    p.batch = 512;
    p.rows_q = p.rows_k = 128;
    EXPECT_EQ(grid_of(p, h100), 3 * 132);
    EXPECT_EQ(grid_of(p, {}), 132) << "an H200";
    p.batch = 128;
    EXPECT_EQ(grid_of(p, h100), 132) << "few rounds";
    p.batch = 512;
    p.rows_q = p.rows_k = 512;
    EXPECT_EQ(grid_of(p, h100), 132) << "several row blocks";
    p.rows_q = 128;
    p.rows_k = 8192;
    EXPECT_EQ(grid_of(p, h100), 132) << "long tiles";
}

}  // namespace
}  // namespace foveal::sm90
