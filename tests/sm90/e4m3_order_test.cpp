// The order of keys in the products over e4m3 (src/sm90/forward/e4m3/key_order.hpp) against the PTX manual's fragments,
// and the transposition of V, instruction by instruction.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <set>
#include <utility>

#include "sm90/forward/e4m3/key_order.hpp"
#include "sm90/tile/panel.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kKeys = 128;

TEST(E4m3Order, EveryKeyHasOneColumn) {
    std::set<int32_t> keys;
    for (int32_t column = 0; column < kKeys; ++column) {
        EXPECT_EQ(key_of_column(column) / kOrderedKeys, column / kOrderedKeys);
        keys.insert(key_of_column(column));
    }
    EXPECT_EQ(keys.size(), size_t{kKeys});
}

// The manual's A of m64k32 of 8-bit elements: groupID = lane >> 2; of register i the row is groupID, or eight more
// where i is odd, and the columns are (lane % 4) * 4 + e, 16 more from i = 2 on.
TEST(E4m3Order, AThreadPacksTheScoresThatItHas) {
    for (int32_t lane = 0; lane < 32; ++lane)
        for (int32_t kstep = 0; kstep < kKeys / 32; ++kstep)
            for (int32_t i = 0; i < 4; ++i)
                for (int32_t e = 0; e < 4; ++e) {
                    const int32_t row = (lane >> 2) + i % 2 * 8, column = kstep * 32 + i / 2 * 16 + lane % 4 * 4 + e;
                    const int32_t score = score_of_operand(kstep, i, e);
                    ASSERT_EQ(Fragment::first_row(lane) + Fragment::row_offset(score), row);
                    ASSERT_EQ(Fragment::first_column(lane) + Fragment::column_offset(score), key_of_column(column));
                }
}

uint32_t permuted(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = uint64_t{b} << 32 | a;
    uint32_t result = 0;
    for (int32_t i = 0; i < 4; ++i)
        result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}

// 32 keys by 16 channels, whose byte is key * 8 + channel / 2 and so on: told apart by two passes over its bits.
TEST(E4m3Order, VIsTransposedIntoThisOrder) {
    for (const bool of_keys : {true, false}) {
        const auto byte_of = [&](int32_t key, int32_t channel) {
            return static_cast<uint8_t>(of_keys ? key : channel);
        };
        std::array<std::array<uint32_t, 4>, 32> pairs{}, rows{};
        // ldmatrix.trans: of the matrix `eight`, whose rows are keys and whose 16-bit columns are pairs of channels, a
        // lane gets elements 2 (lane % 4) and the next of column lane / 4.
        for (size_t lane = 0; lane < 32; ++lane)
            for (int32_t eight = 0; eight < 4; ++eight)
                for (int32_t half = 0; half < 2; ++half)
                    for (int32_t byte = 0; byte < 2; ++byte) {
                        const auto at = static_cast<int32_t>(lane);
                        const uint32_t value = byte_of(eight * 8 + at % 4 * 2 + half, at / 4 * 2 + byte);
                        pairs[lane][static_cast<size_t>(eight)] |= value << 8 * (2 * half + byte);
                    }
        for (size_t lane = 0; lane < 32; ++lane)
            for (size_t i = 0; i < 4; ++i)
                rows[lane][i] =
                    permuted(pairs[lane][i / 2 * 2], pairs[lane][i / 2 * 2 + 1],
                             Transposition::selector(static_cast<int32_t>(lane), static_cast<int32_t>(i % 2)));
        // stmatrix: row r of matrix i is written by lanes 4 r to 4 r + 3, four bytes each.
        std::set<std::pair<int32_t, int32_t>> written;
        for (int32_t i = 0; i < 4; ++i)
            for (int32_t r = 0; r < 8; ++r)
                for (int32_t byte = 0; byte < 16; ++byte) {
                    const int32_t channel = Transposition::channel(r, i % 2), column = i / 2 * 16 + byte;
                    const uint32_t word = rows[static_cast<size_t>(4 * r + byte / 4)][static_cast<size_t>(i)];
                    ASSERT_EQ(word >> byte % 4 * 8 & 0xFF, byte_of(key_of_column(column), channel));
                    written.insert({channel, column});
                }
        EXPECT_EQ(written.size(), size_t{16 * 32});
    }
}

// The eight rows that stmatrix writes at once, vectors of one column, lie in different banks (panel.cuh, swizzled()).
TEST(E4m3Order, RowsOfATransposedMatrixDoNotMeetInABank) {
    for (int32_t matrix = 0; matrix < 2; ++matrix) {
        std::set<int32_t> vectors;
        for (int32_t r = 0; r < 8; ++r) vectors.insert(Transposition::channel(r, matrix) & (kRowVectors - 1));
        EXPECT_EQ(vectors.size(), size_t{8});
    }
}

}  // namespace
}  // namespace foveal::sm90
