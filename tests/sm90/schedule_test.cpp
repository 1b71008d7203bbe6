// src/sm90/forward/schedule.hpp: every tile exactly once, and in the order that its comment promises.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "sm90/forward/schedule.hpp"

namespace foveal::sm90 {
namespace {

std::vector<TileOrder> small_orders() {
    std::vector<TileOrder> orders;
    for (const bool last_rows_first : {false, true}) {
        for (int32_t units = 1; units <= 9; ++units) {
            for (const int32_t group : {1, 2, 3, 8}) {
                for (int32_t row_blocks = 1; row_blocks <= 6; ++row_blocks) {
                    for (int32_t section = 1; section <= units + 1; ++section) {
                        for (const int32_t least_in_last : {1, 2, 4}) {
                            orders.push_back({units, group, row_blocks, section,
                                              section_count(units, section, least_in_last), last_rows_first});
                        }
                    }
                }
            }
        }
    }
    return orders;
}

std::string text_of(const TileOrder& order) {
    return "units " + std::to_string(order.units) + " group " + std::to_string(order.heads_per_kv) + " row_blocks " +
           std::to_string(order.row_blocks) + " section_units " + std::to_string(order.section_units) + " sections " +
           std::to_string(order.sections);
}

TEST(Schedule, EveryTileExactlyOnce) {
    for (const TileOrder& order : small_orders()) {
        std::set<std::tuple<int32_t, int32_t, int32_t>> places;
        for (int32_t t = 0; t < order.tiles(); ++t) {
            const TilePlace place = tile_place(order, t);
            ASSERT_TRUE(0 <= place.unit && place.unit < order.units) << text_of(order) << " t " << t;
            ASSERT_TRUE(0 <= place.head_in_unit && place.head_in_unit < order.heads_per_kv)
                << text_of(order) << " t " << t;
            ASSERT_TRUE(0 <= place.row_block && place.row_block < order.row_blocks) << text_of(order) << " t " << t;
            places.insert({place.unit, place.head_in_unit, place.row_block});
        }
        ASSERT_EQ(static_cast<int32_t>(places.size()), order.tiles()) << text_of(order);
    }
}

TEST(Schedule, SectionsFollowEachOtherAndLongRowsComeFirst) {
    for (const TileOrder& order : small_orders()) {
        for (int32_t t = 1; t < order.tiles(); ++t) {
            const TilePlace before = tile_place(order, t - 1), now = tile_place(order, t);
            ASSERT_GE(now.section, before.section) << text_of(order) << " t " << t;
            const int32_t first_unit = now.section * order.section_units;
            ASSERT_TRUE(first_unit <= now.unit && now.unit < first_unit + order.units_of(now.section))
                << text_of(order) << " t " << t;
            if (now.section != before.section) continue;
            const int32_t step = now.row_block - before.row_block;
            ASSERT_TRUE(order.last_rows_first ? step <= 0 : step >= 0) << text_of(order) << " t " << t;
        }
    }
}

TEST(Schedule, TheFastOrderIsTheOrder) {
    for (const TileOrder& order : small_orders()) {
        const FastTileOrder fast(order);
        for (int32_t t = 0; t < order.tiles(); ++t) {
            const TilePlace place = tile_place(order, t), same = tile_place(fast, t);
            ASSERT_TRUE(place.section == same.section && place.unit == same.unit &&
                        place.head_in_unit == same.head_in_unit && place.row_block == same.row_block)
                << text_of(order) << " t " << t;
        }
    }
}

TEST(Schedule, PackedTilesHoldAllRows) {
    for (const int32_t rows : {64, 128, 192, 256}) {
        for (const int32_t heads_log2 : {0, 1, 2, 3, 4}) {
            const int32_t queries = rows >> heads_log2;
            for (const int32_t len_q : {0, 1, 3, 63, 64, 65, 127, 128, 130, 191, 255, 257, 1000, 1 << 29}) {
                const int32_t blocks = row_blocks_of(len_q, rows, heads_log2);
                EXPECT_GE(int64_t{blocks} * queries, len_q);
                EXPECT_LT((int64_t{blocks} - 1) * queries, len_q);
                EXPECT_LE(blocks, row_blocks_of(len_q, rows, 0) << heads_log2);
            }
        }
    }
    const auto group_tiles = [](int32_t len_q, int32_t rows, int32_t group, int32_t heads_log2) {
        return packs_of(group, heads_log2) * row_blocks_of(len_q, rows, heads_log2);
    };
    EXPECT_EQ(group_tiles(64, 128, 2, 0), 2);
    EXPECT_EQ(group_tiles(64, 128, 2, 1), 1);
    EXPECT_EQ(group_tiles(65, 128, 2, 1), 2);
    EXPECT_EQ(group_tiles(96, 128, 4, 2), 3);
    EXPECT_EQ(group_tiles(256, 128, 16, 4), 32);
    EXPECT_EQ(group_tiles(0, 128, 16, 4), 0);
    EXPECT_EQ(group_tiles(5, 128, 7, 0), 7);
    EXPECT_EQ(group_tiles(16, 128, 7, 3), 1);
    EXPECT_EQ(group_tiles(17, 128, 7, 3), 2);
    EXPECT_EQ(group_tiles(16, 128, 9, 3), 2);  // the second of one head
}

TEST(Schedule, DivisorsDivide) {
    std::vector<int32_t> values = {1,        2, 3, 5, 7, 8, 9, 641, 1000, 65535, 65536, 65537, 1 << 30, INT32_MAX - 1,
                                   INT32_MAX};
    for (int32_t d = 10; d < 300; ++d) values.push_back(d);
    for (const int32_t d : values) {
        const Divisor divisor(d);
        std::vector<int64_t> numbers = {0, 1, 2, INT32_MAX - 1, INT32_MAX};
        for (const int64_t quotient : {int64_t{1}, int64_t{2}, int64_t{77}, int64_t{INT32_MAX} / d})
            for (const int64_t off : {-1, 0, 1}) numbers.push_back(quotient * d + off);
        for (const int64_t n : numbers)
            if (0 <= n && n <= INT32_MAX) {
                const auto number = static_cast<int32_t>(n);
                ASSERT_EQ(number / divisor, number / d) << number << " / " << d;
            }
    }
}

TEST(Schedule, TheLastSectionHasAtLeastItsUnits) {
    EXPECT_EQ(section_count(10, 3, 1), 4);   // 3, 3, 3, 1
    EXPECT_EQ(section_count(9, 3, 1), 3);    // 3, 3, 3
    EXPECT_EQ(section_count(10, 3, 5), 2);   // 3, 7
    EXPECT_EQ(section_count(10, 3, 11), 1);  // 10
    EXPECT_EQ(section_count(0, 1, 1), 1);
}

TEST(Schedule, SerpentinesCoverEveryTileOnce) {
    for (int32_t grid = 1; grid <= 9; ++grid) {
        for (int32_t tiles = 1; tiles <= 40; ++tiles) {
            std::vector<int32_t> taken(static_cast<size_t>(tiles), 0);
            for (int32_t cta = 0; cta < grid; ++cta) {
                int32_t previous = -1;
                // As the kernel walks: until the first tile past the end.
                for (int32_t round = 0;; ++round) {
                    const int32_t t = serpentine(round, cta, grid);
                    ASSERT_GT(t, previous) << "a later round must not go back";
                    previous = t;
                    if (t >= tiles) break;
                    ++taken[static_cast<size_t>(t)];
                }
            }
            ASSERT_EQ(std::count(taken.begin(), taken.end(), 1), tiles) << "grid " << grid << " tiles " << tiles;
        }
    }
}

TEST(Schedule, SectionsHoldAtLeastOneUnitAndAtMostAll) {
    for (const int32_t section_keys : {0, 1, 100, 1 << 20, 1 << 30}) {
        for (const int32_t len_k : {0, 1, 99, 100, 101, 1 << 29}) {
            for (const int32_t units : {1, 8, 1024}) {
                for (const int32_t step : {1, 4}) {
                    if (units % step != 0) continue;
                    const int32_t section = section_units(section_keys, len_k, units, Divisor(step));
                    EXPECT_GE(section, step);
                    EXPECT_LE(section, units);
                    EXPECT_EQ(section % step, 0);
                    EXPECT_TRUE(section == step || int64_t{section} * len_k <= section_keys);
                }
            }
        }
    }
}

// Where a row sees keys, but none of the first block, the second is masked, so that the softmax asks for that row
// there. Nothing else differs from kv_range(), and without a limit before a query nothing does.
TEST(Schedule, TheSecondBlockIsMaskedWhereARowSeesNoneOfTheFirst) {
    constexpr int32_t kKeys = 4, kLengthQ = 11, kLengthK = 23;
    int asked = 0;
    for (const int32_t left : {0, 1, 3, 4, 7, kUnlimitedWidth})
        for (const int32_t right : {0, 2, 5, kUnlimitedWidth})
            for (const int32_t chunk : {0, 3, 8})
                for (int32_t begin = 0; begin < kLengthQ; ++begin)
                    for (int32_t end = begin + 1; end <= std::min(begin + kKeys, kLengthQ); ++end) {
                        const Band band = band_of({left, right, false, chunk}, kLengthQ, kLengthK);
                        const BlockRange blocks = blocks_of_rows(band, {begin, end}, kKeys);
                        const BlockRange plain = kv_range(band, {begin, end}, kKeys);
                        ASSERT_TRUE(blocks.visit.begin == plain.visit.begin && blocks.visit.end == plain.visit.end);
                        bool any_misses_first = false;
                        for (int32_t row = begin; row < end; ++row) {
                            const Range keys = visible_keys(band, row);
                            any_misses_first |= keys.size() > 0 && keys.begin >= (blocks.visit.begin + 1) * kKeys;
                        }
                        asked += any_misses_first;
                        ASSERT_FALSE(any_misses_first && blocks.unmasked.contains(blocks.visit.begin + 1));
                        for (int32_t block = blocks.visit.begin; block < blocks.visit.end; ++block) {
                            if (block == blocks.visit.begin + 1 && (left < kUnlimitedWidth || chunk > 0)) continue;
                            ASSERT_EQ(blocks.unmasked.contains(block), plain.unmasked.contains(block));
                        }
                    }
    EXPECT_GT(asked, 50);
}

}  // namespace
}  // namespace foveal::sm90
