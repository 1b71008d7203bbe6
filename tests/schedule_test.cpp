// src/sm90/schedule.hpp: every tile exactly once, and in the order that its comment promises.
#include "sm90/schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

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
    return "units " + std::to_string(order.units) + " group " + std::to_string(order.group) + " row_blocks " +
           std::to_string(order.row_blocks) + " section_units " + std::to_string(order.section_units) + " sections " +
           std::to_string(order.sections);
}

TEST(Schedule, EveryTileExactlyOnce) {
    for (const TileOrder& order : small_orders()) {
        std::set<std::tuple<int32_t, int32_t, int32_t>> places;
        for (int32_t t = 0; t < order.tiles(); ++t) {
            const TilePlace place = tile_place(order, t);
            ASSERT_TRUE(0 <= place.unit && place.unit < order.units) << text_of(order) << " t " << t;
            ASSERT_TRUE(0 <= place.head_in_group && place.head_in_group < order.group) << text_of(order) << " t " << t;
            ASSERT_TRUE(0 <= place.row_block && place.row_block < order.row_blocks) << text_of(order) << " t " << t;
            places.insert({place.unit, place.head_in_group, place.row_block});
        }
        ASSERT_EQ(static_cast<int32_t>(places.size()), order.tiles()) << text_of(order);
    }
}

TEST(Schedule, SectionsFollowEachOtherAndLongRowsComeFirst) {
    for (const TileOrder& order : small_orders()) {
        for (int32_t t = 1; t < order.tiles(); ++t) {
            const TilePlace before = tile_place(order, t - 1), now = tile_place(order, t);
            const int32_t section_before = section_at(order, t - 1).first_unit;
            const Section section = section_at(order, t);
            ASSERT_GE(section.first_unit, section_before) << text_of(order) << " t " << t;
            ASSERT_TRUE(section.first_unit <= now.unit && now.unit < section.first_unit + section.units)
                << text_of(order) << " t " << t;
            if (section.first_unit != section_before) continue;
            const int32_t step = now.row_block - before.row_block;
            ASSERT_TRUE(order.last_rows_first ? step <= 0 : step >= 0) << text_of(order) << " t " << t;
        }
    }
}

TEST(Schedule, TheLastSectionHasAtLeastItsUnitsAndTheOthersTheirs) {
    for (const TileOrder& order : small_orders()) {
        for (int32_t t = 0; t < order.tiles(); ++t) {
            const Section section = section_at(order, t);
            const bool last = section.first_unit + section.units == order.units;
            ASSERT_TRUE(last || section.units == order.section_units) << text_of(order) << " t " << t;
        }
    }
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
                for (int32_t turn = 0;; ++turn) {
                    const int32_t t = serpentine(turn, cta, grid);
                    ASSERT_GT(t, previous) << "a later turn must not go back";
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
                const int32_t section = section_units(section_keys, len_k, units);
                EXPECT_GE(section, 1);
                EXPECT_LE(section, units);
                EXPECT_TRUE(section == 1 || int64_t{section} * len_k <= section_keys);
            }
        }
    }
}

}  // namespace
}  // namespace foveal::sm90
