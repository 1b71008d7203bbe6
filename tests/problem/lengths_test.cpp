// Where a sequence's rows lie: the one place that host and kernels ask.
#include <gtest/gtest.h>

#include "problem/lengths.hpp"

namespace foveal {
namespace {

TEST(Lengths, DenseSequencesBeginAtTheirOwnFirstRow) {
    const Lengths lengths{7, nullptr, nullptr};
    EXPECT_EQ(lengths.of(3).first, 0);
    EXPECT_EQ(lengths.of(3).length, 7);
}

TEST(Lengths, VarlenSequencesLieOneBehindTheOther) {
    const int32_t cu_seqlens[] = {0, 5, 5, 12};
    const Lengths lengths{12, cu_seqlens, nullptr};
    EXPECT_EQ(lengths.of(0).length, 5);
    EXPECT_EQ(lengths.of(1).first, 5);
    EXPECT_EQ(lengths.of(1).length, 0);
    EXPECT_EQ(lengths.of(2).first, 5);
    EXPECT_EQ(lengths.of(2).length, 7);
}

TEST(Lengths, UsedLengthsShortenASequenceAndNeverLengthenIt) {
    const int32_t cu_seqlens[] = {0, 5, 12}, seqused[] = {3, 99};
    const Lengths dense{7, nullptr, seqused}, varlen{12, cu_seqlens, seqused};
    EXPECT_EQ(dense.of(0).length, 3);
    EXPECT_EQ(dense.of(1).length, 7);
    EXPECT_EQ(varlen.of(0).length, 3);
    EXPECT_EQ(varlen.of(1).first, 5);
    EXPECT_EQ(varlen.of(1).length, 7);
    const Lengths one_for_all{7, nullptr, seqused, 0};
    EXPECT_EQ(one_for_all.of(1).length, 3);
}

}  // namespace
}  // namespace foveal
