// src/sm90/tile/fragment.hpp against the PTX manual's definition: wgmma's accumulator is, for a warp and eight columns,
// the C of mma.m16n8k16 (there: groupID = lane >> 2, threadID_in_group = lane % 4; of c_i, row groupID for i < 2, else
// groupID + 8, and column threadID_in_group * 2 + (i & 1)), and its A, the A of mma.m16n8k16.
#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "sm90/scores/mask.hpp"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/operand_load.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kColumns = 128;

TEST(Fragment, IsWhatTheManualSays) {
    for (int32_t lane = 0; lane < 32; ++lane)
        for (int32_t i = 0; i < Fragment::size(kColumns); ++i) {
            const int32_t c = i % 4;
            EXPECT_EQ(Fragment::first_row(lane) + Fragment::row_offset(i), c < 2 ? lane >> 2 : (lane >> 2) + 8);
            EXPECT_EQ(Fragment::first_column(lane) + Fragment::column_offset(i), i / 4 * 8 + (lane % 4) * 2 + (c & 1));
        }
}

TEST(Fragment, HoldsEveryElementOnce) {
    std::set<std::pair<int32_t, int32_t>> elements;
    for (int32_t lane = 0; lane < 32; ++lane)
        for (int32_t i = 0; i < Fragment::size(kColumns); ++i)
            elements.insert({Fragment::first_row(lane) + Fragment::row_offset(i),
                             Fragment::first_column(lane) + Fragment::column_offset(i)});
    EXPECT_EQ(elements.size(), size_t{16} * kColumns);
    EXPECT_EQ(elements.begin()->first, 0);
    EXPECT_EQ(elements.rbegin()->first, 15);
}

TEST(Fragment, RegistersAreFoundByRowAndColumn) {
    for (int32_t i = 0; i < Fragment::size(kColumns); ++i) {
        EXPECT_EQ(Fragment::index(Fragment::row(i), Fragment::column_offset(i)), i);
        EXPECT_EQ(Fragment::row_of_pair(i / 2), Fragment::row(i));
    }
}

// Of A: a_0, a_1 in row groupID and column threadID_in_group * 2 + (i & 1); a_2, a_3 eight rows below; a_4 to a_7 the
// same, eight columns further right.
TEST(Fragment, FourPairsAreAnOperand) {
    for (int32_t kstep = 0; kstep < kColumns / 16; ++kstep)
        for (int32_t a = 0; a < 2 * Fragment::kPairsOfOperand; ++a) {
            const int32_t i = kstep * 2 * Fragment::kPairsOfOperand + a;
            EXPECT_EQ(Fragment::row_offset(i), a / 2 % 2 * 8);
            EXPECT_EQ(Fragment::column_offset(i), kstep * 16 + a / 4 * 8 + a % 2);
        }
}

// ldmatrix.x4: lane l gives the address of row l % 8 of matrix l / 8, and its register m gets of matrix m the elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
TEST(Fragment, AnOperandIsReadByLdmatrix) {
    for (int32_t step = 0; step < kColumns / 16; ++step)
        for (int32_t lane = 0; lane < 32; ++lane)
            for (int32_t m = 0; m < Fragment::kPairsOfOperand; ++m) {
                const int32_t source = 8 * m + lane / 4;  // the lane whose address it is
                const int32_t i = 2 * (step * Fragment::kPairsOfOperand + m);
                EXPECT_EQ(OperandLoad::row(source), Fragment::first_row(lane) + Fragment::row_offset(i));
                EXPECT_EQ(OperandLoad::panel(step) * kPanelColumns +
                              OperandLoad::vector(step, source) * kVectorColumns + 2 * (lane % 4),
                          Fragment::first_column(lane) + Fragment::column_offset(i));
            }
}

TEST(Fragment, ElementsOfARowAreCountedInTheOrderOfTheirColumns) {
    constexpr int32_t kElements = Fragment::size(kColumns) / Fragment::kRows;
    for (int32_t n = 0; n < kElements; ++n) {
        EXPECT_EQ(Fragment::count_below(Fragment::column_of_nth(n)), n);
        EXPECT_EQ(Fragment::count_below(Fragment::column_of_nth(n) + 1), n + 1);
    }
    EXPECT_EQ(Fragment::count_below(kColumns), kElements);
}

// The mask of a block, bit by bit.
TEST(Fragment, PositionsAreVisibleAsTheirKeysAre) {
    constexpr int32_t kFirstKey = 256;
    for (const Band band : {band_of({17, 5}, 300, 400), band_of({}, 300, 300), band_of({50, 0, false, 64}, 300, 400)})
        for (int32_t row = 140; row < 300; row += 7)
            for (int32_t lane = 0; lane < 32; ++lane) {
                const uint32_t visible = visible_positions(band, row, kFirstKey, lane);
                for (int32_t n = 0; n < kColumns / 4; ++n) {
                    const int32_t key = kFirstKey + Fragment::first_column(lane) + Fragment::column_of_nth(n);
                    ASSERT_EQ((visible >> n & 1) != 0, visible_keys(band, row).contains(key)) << row << ' ' << key;
                }
            }
}

}  // namespace
}  // namespace foveal::sm90
