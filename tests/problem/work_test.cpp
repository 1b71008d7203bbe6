// Useful FLOPs and bytes, against numbers counted by hand.
#include <gtest/gtest.h>

#include "problem/work.hpp"

namespace foveal {
namespace {

ForwardProblem problem_of(int64_t batch, int64_t rows_q, int64_t rows_k) {
    ForwardProblem p;
    p.dtype = DType::bf16;
    p.batch = batch;
    p.rows_q = rows_q;
    p.rows_k = rows_k;
    p.heads_q = 6;
    p.heads_k = 2;
    p.head_dim = 16;
    p.head_dim_v = 8;
    return p;
}

TEST(UsefulWork, CountsEachPairInBothProductsAndEachRowOnce) {
    const UsefulWork work = useful_work_of_dense(problem_of(3, 10, 20));
    EXPECT_EQ(work.visible_pairs, 3 * 10 * 20);
    EXPECT_EQ(work.flops, 2.0 * (16 + 8) * (3 * 10 * 20) * 6);
    EXPECT_EQ(work.bytes, 2.0 * (16 + 8) * 3 * (10 * 6 + 20 * 2));
}

TEST(UsefulWork, FollowsTheMask) {
    ForwardProblem causal = problem_of(1, 4, 4);
    causal.window_right = 0;
    EXPECT_EQ(useful_work_of_dense(causal).visible_pairs, 1 + 2 + 3 + 4);
    causal.rows_k = 6;  // bottom right: the first query sees three keys
    EXPECT_EQ(useful_work_of_dense(causal).visible_pairs, 3 + 4 + 5 + 6);
    causal.alignment = FOVEAL_TOP_LEFT;
    EXPECT_EQ(useful_work_of_dense(causal).visible_pairs, 1 + 2 + 3 + 4);
    ForwardProblem chunked = problem_of(1, 4, 4);
    chunked.chunk = 2;
    EXPECT_EQ(useful_work_of_dense(chunked).visible_pairs, 4 * 2);
}

TEST(UsefulWork, SequencesHaveLengthsOfTheirOwn) {
    ForwardProblem p = problem_of(2, 13, 29);
    p.varlen = true;
    const SequenceLengths lengths[] = {{10, 20}, {3, 9}};
    const UsefulWork work = useful_work(p, lengths);
    EXPECT_EQ(work.visible_pairs, 10 * 20 + 3 * 9);
    EXPECT_EQ(work.bytes, 2.0 * (16 + 8) * (13 * 6 + 29 * 2));
}

TEST(UsefulWork, SequencesHaveOffsetsOfTheirOwn) {
    ForwardProblem p = problem_of(2, 4, 9);
    p.window_right = 0;
    const SequenceLengths lengths[] = {{4, 9, 2}, {4, 9, -2}};
    EXPECT_EQ(useful_work(p, lengths).visible_pairs, (3 + 4 + 5 + 6) + (0 + 0 + 1 + 2));
}

TEST(UsefulWork, OptionalTensorsCountWhereTheyAreThere) {
    ForwardProblem p = problem_of(2, 10, 20);
    const double plain = useful_work_of_dense(p).bytes;
    p.wants_lse = true;
    EXPECT_EQ(useful_work_of_dense(p).bytes, plain + 4.0 * 2 * 10 * 6);
    p.wants_lse = false;
    p.has_bias = true;
    p.bias_dtype = DType::f32;
    p.bias = {{0, 20, 200}, 1};  // of each head, shared by the sequences
    EXPECT_EQ(useful_work_of_dense(p).bytes, plain + 4.0 * 10 * 20 * 6);
    p.has_bias = false;
    p.has_mask = true;
    p.mask = {{200, 20, 0}, 1};  // of each sequence, shared by the heads
    EXPECT_EQ(useful_work_of_dense(p).bytes, plain + 1.0 * 2 * 10 * 20);
    p.mask = {{20, 0, 0}, 1};  // of padding: by the queries too
    EXPECT_EQ(useful_work_of_dense(p).bytes, plain + 1.0 * 2 * 20);
    p.mask = {{0, 1, 0}, 0};
    EXPECT_EQ(useful_work_of_dense(p).bytes, plain + 1.0 * 10);
}

}  // namespace
}  // namespace foveal
