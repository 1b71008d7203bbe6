// src/sm90/forward/order.cpp: what it says of its choice is true, and the choice is a good one.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "problem/mask.hpp"
#include "sm90/forward/order.hpp"
#include "sm90/forward/schedule.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kGrid = 132, kRows = 128, kKeys = 128;
constexpr TileShape kTile{kRows, kKeys, 0};

ForwardProblem dense(int64_t batch, int64_t rows, int64_t heads_q, int64_t heads_k, int64_t left, int64_t right) {
    ForwardProblem p{};
    p.dtype = DType::bf16;
    p.batch = batch;
    p.rows_q = p.rows_k = rows;
    p.heads_q = heads_q;
    p.heads_k = heads_k;
    p.head_dim = p.head_dim_v = 128;
    p.window_left = left;
    p.window_right = right;
    return p;
}

std::vector<ForwardProblem> problems() {
    std::vector<ForwardProblem> all;
    for (const int64_t rows : {1, 128, 500, 1024, 2048, 4096})
        for (const int64_t batch : {1, 3, 16, 33})
            for (const int64_t heads_k : {1, 8, 16})
                for (const auto& [left, right] : {std::pair<int64_t, int64_t>{FOVEAL_UNLIMITED, 0},
                                                  {FOVEAL_UNLIMITED, FOVEAL_UNLIMITED},
                                                  {300, 0},
                                                  {300, FOVEAL_UNLIMITED}})
                    all.push_back(dense(batch, rows, 2 * heads_k, heads_k, left, right));
    return all;
}

bool last_rows_first(const ForwardProblem& p) { return p.window_right != FOVEAL_UNLIMITED; }

OrderChoice choice_for(const ForwardProblem& p, const cuda::DeviceTraits& traits = {}) {
    return choose_order(p, traits, kTile, kGrid, last_rows_first(p));
}

// Walked tile by tile, as the kernel does.
double imbalance_of(const ForwardProblem& p, const OrderChoice& choice) {
    const auto rows = static_cast<int32_t>(p.rows_q);
    const TileOrder order = tile_order(p, kTile, choice, last_rows_first(p));
    const Band band = band_of(p.window(), rows, rows);
    std::vector<double> loads(kGrid);
    double total = 0;
    for (int32_t cta = 0; cta < kGrid; ++cta)
        for (int32_t round = 0, t = cta; t < order.tiles(); t = serpentine(++round, cta, kGrid)) {
            const int32_t row = tile_place(order, t).row_block * kRows;
            const Range visit = kv_range(band, {row, std::min(row + kRows, rows)}, kKeys).visit;
            const double cost = tile_cost(visit, kKeys);
            loads[static_cast<size_t>(cta)] += cost;
            total += cost;
        }
    return *std::max_element(loads.begin(), loads.end()) * kGrid / total;
}

std::string text_of(const ForwardProblem& p) {
    return "batch " + std::to_string(p.batch) + " rows " + std::to_string(p.rows_q) + " heads " +
           std::to_string(p.heads_k) + " left " + std::to_string(p.window_left) + " right " +
           std::to_string(p.window_right);
}

TEST(Order, ImbalanceIsThatOfTheWalk) {
    for (const ForwardProblem& p : problems()) {
        const OrderChoice choice = choice_for(p);
        EXPECT_NEAR(choice.imbalance, imbalance_of(p, choice), 1e-9) << text_of(p);
    }
}

// A CTA with one tile more than the mean is what remains.
TEST(Order, NoCtaIsLeftBehind) {
    for (const ForwardProblem& p : problems()) {
        const double tiles_a_cta = static_cast<double>(p.batch * p.heads_q * ((p.rows_q + kRows - 1) / kRows)) / kGrid;
        if (tiles_a_cta < 2) continue;
        EXPECT_LE(choice_for(p).imbalance, std::max(1.04, (tiles_a_cta + 1) / tiles_a_cta)) << text_of(p);
    }
}

// Of which none of the usual sections makes whole rounds: with those alone up to 1.11.
TEST(Order, LengthsThatAreNoPowersOfTwoAreEvenToo) {
    for (const int64_t rows : {2176, 2432, 2944, 3200, 3712, 4736}) {
        const ForwardProblem p = dense(8, rows, 16, 16, FOVEAL_UNLIMITED, 0);
        EXPECT_LE(choice_for(p).imbalance, 1.035) << text_of(p);
    }
}

// The slower the DRAM, the smaller the sections: K and V then come in evenly.
TEST(Order, SlowDramWantsSmallSections) {
    const ForwardProblem p = dense(16, 1024, 16, 16, FOVEAL_UNLIMITED, 0);
    cuda::DeviceTraits slow, fast;
    slow.dram_bytes_per_second = 2e12;
    fast.dram_bytes_per_second = 100e12;
    EXPECT_LT(choice_for(p, slow).section_units, 4);
    EXPECT_LE(choice_for(p, slow).section_units, choice_for(p, fast).section_units);
}

// Of 512 rows: short to compute, long to read where every head has a K and V of its own.
TEST(Order, TilesOfVarlenThatWaitForDramAreDealtOut) {
    ForwardProblem p = dense(64, 64 * 512, 16, 16, FOVEAL_UNLIMITED, 0);
    p.varlen = true;
    cuda::DeviceTraits slow, fast;
    slow.dram_bytes_per_second = 3.35e12;
    fast.dram_bytes_per_second = 100e12;
    EXPECT_EQ(choice_for(p, slow).bundle, 4);
    EXPECT_EQ(choice_for(p, fast).bundle, 0);
    p.heads_k = 4;
    EXPECT_EQ(choice_for(p, slow).bundle, 0);
    // Of 128 rows: too short to read as well.
    p = dense(64, 64 * 128, 16, 16, FOVEAL_UNLIMITED, 0);
    p.varlen = true;
    EXPECT_EQ(choice_for(p, slow).bundle, 0);
}

TEST(Order, VarlenHasSectionsOfACachesSize) {
    ForwardProblem p = dense(16, 32768, 16, 16, FOVEAL_UNLIMITED, 0);
    p.varlen = true;
    EXPECT_EQ(choice_for(p).section_keys, 57344);  // 28 MiB of 512 bytes a key
}

// Packed, a tile has fewer queries, and visits fewer blocks where it has more rows than a block has keys.
TEST(Order, WhatAUnitCostsPacked) {
    const ForwardProblem causal = dense(1, 1024, 4, 1, FOVEAL_UNLIMITED, 0), narrow = dense(1, 1024, 4, 1, 127, 0),
                         full = dense(1, 1024, 4, 1, FOVEAL_UNLIMITED, FOVEAL_UNLIMITED);
    for (const ForwardProblem& p : {causal, narrow, full}) EXPECT_EQ(unit_cost(p, {128, 128, 2}), unit_cost(p, kTile));
    // Four heads: tiles of 256 rows that visit 4, 8, 12 and 16 blocks of 64 keys; packed, of 64 queries, 1 to 16.
    EXPECT_EQ(unit_cost(causal, {256, 64, 0}), 4 * (40 * 64 + 4 * kTileOverheadKeys));
    EXPECT_EQ(unit_cost(causal, {256, 64, 2}), 136 * 64 + 16 * kTileOverheadKeys);
    EXPECT_LT(unit_cost(narrow, {256, 64, 2}), unit_cost(narrow, {256, 64, 0}));
    EXPECT_EQ(unit_cost(full, {256, 64, 2}), unit_cost(full, {256, 64, 0}));
}

// Not all row blocks are looked at then, or a plan would take seconds.
TEST(Order, TheLongestSequenceIsPlannedFromSomeOfItsRowBlocks) {
    const double rows = kMaxSequenceLength, overhead = rows / kTile.rows * kTileOverheadKeys;
    const auto cost = [&](int64_t left, int64_t right) {
        const auto p = dense(1, kMaxSequenceLength, 1, 1, left, right);
        EXPECT_EQ(choice_for(p).section_units, 1);
        return static_cast<double>(unit_cost(p, kTile));
    };
    EXPECT_NEAR(cost(FOVEAL_UNLIMITED, FOVEAL_UNLIMITED) / (rows / kTile.rows * rows + overhead), 1, 1e-6);
    EXPECT_NEAR(cost(FOVEAL_UNLIMITED, 0) / (rows / kTile.rows * rows / 2 + overhead), 1, 1e-4);
    EXPECT_NEAR(cost(kTile.keys - 1, 0) / (rows / kTile.rows * 2 * kTile.keys + overhead), 1, 1e-4);
}

}  // namespace
}  // namespace foveal::sm90
