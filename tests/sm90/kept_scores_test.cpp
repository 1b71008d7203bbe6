// Which scores of a fragment dropout keeps (src/sm90/scores/dropout.hpp), played through on the host for the lanes of a
// warp, against the rule of problem/dropout.hpp for each score alone.
#include <gtest/gtest.h>

#include <array>

#include "sm90/scores/dropout.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {
namespace {

constexpr PhiloxKey kKey{{0x12345678, 0x9abcdef0}};
constexpr uint32_t kHead = 4000000001u;

template <int32_t kColumns>
void expect_queries_right(uint32_t threshold, int32_t query, int32_t first_key) {
    for (int32_t lane = 0; lane < kWarpThreads; ++lane) {
        KeptScores<kColumns, false> kept;
        kept.draw(kKey, threshold_pair(threshold), kHead, query, first_key, lane);
        for (int32_t i = 0; i < Fragment::size(kColumns); ++i) {
            const int32_t row = query + Fragment::first_row(lane) + Fragment::row_offset(i),
                          j = first_key + Fragment::first_column(lane) + Fragment::column_offset(i);
            ASSERT_EQ(kept.keeps(i),
                      dropout_keeps(kKey, threshold, kHead, static_cast<uint32_t>(row), static_cast<uint32_t>(j)))
                << "lane " << lane << " register " << i << " first key " << first_key;
        }
    }
}

TEST(KeptScores, RowsThatAreQueries) {
    for (const uint32_t threshold : {1u, 20000u, 32768u, 65535u})
        for (const int32_t first_key : {0, 32, 96, 131040}) {
            expect_queries_right<32>(threshold, 176, first_key);
            expect_queries_right<64>(threshold, 4096, 2 * first_key);
        }
}

template <int32_t kColumns>
void expect_keys_right(uint32_t threshold, int32_t key16, int32_t first_query) {
    using Kept = KeptScores<kColumns, true>;
    std::array<uint32_t, kWarpThreads> drawn{};
    for (int32_t lane = 0; lane < kWarpThreads; ++lane)
        drawn[static_cast<size_t>(lane)] =
            Kept::drawn(kKey, threshold_pair(threshold), kHead, key16, first_query, lane);
    for (int32_t lane = 0; lane < kWarpThreads; ++lane) {
        Kept kept;
        kept.join(drawn[static_cast<size_t>(lane)], drawn[static_cast<size_t>(lane ^ kDropoutLane)], lane);
        for (int32_t i = 0; i < Fragment::size(kColumns); ++i) {
            const int32_t j = key16 + Fragment::first_row(lane) + Fragment::row_offset(i),
                          row = first_query + Fragment::first_column(lane) + Fragment::column_offset(i);
            ASSERT_EQ(kept.keeps(i),
                      dropout_keeps(kKey, threshold, kHead, static_cast<uint32_t>(row), static_cast<uint32_t>(j)))
                << "lane " << lane << " register " << i << " key16 " << key16;
        }
    }
}

TEST(KeptScores, RowsThatAreKeys) {
    for (const uint32_t threshold : {1u, 20000u, 32768u, 65535u})
        for (const int32_t key16 : {0, 16, 32, 112, 131056})
            for (const int32_t query : {0, 64, 4096}) {
                expect_keys_right<64>(threshold, key16, query);
                expect_keys_right<32>(threshold, key16, query + 32);
            }
}

// Of a pair, which has two registers of a fragment.
void expect_pair(uint32_t pair, bool keeps_first, bool keeps_second) {
    ASSERT_EQ(pair, (keeps_first ? 0x0000FFFFu : 0) | (keeps_second ? 0xFFFF0000u : 0));
}

TEST(KeptScores, WeightsOfQueriesAreDroppedInPlace) {
    constexpr int32_t kQuery = 48, kKeys = 128, kKsteps = kKeys / 16;
    for (const uint32_t threshold : {1u, 30000u, 65535u})
        for (const int32_t first_key : {0, 32, 1280})
            for (int32_t lane = 0; lane < kWarpThreads; ++lane) {
                uint32_t p[kKsteps][Fragment::kPairsOfOperand];
                for (auto& operand : p)
                    for (uint32_t& pair : operand) pair = ~0u;
                drop_weights(p, kKey, threshold_pair(threshold), kHead, kQuery, first_key, lane);
                const auto keeps = [&](int32_t i) {
                    const int32_t row = kQuery + Fragment::first_row(lane) + Fragment::row_offset(i),
                                  j = first_key + Fragment::first_column(lane) + Fragment::column_offset(i);
                    return dropout_keeps(kKey, threshold, kHead, static_cast<uint32_t>(row), static_cast<uint32_t>(j));
                };
                for (int32_t i = 0; i < Fragment::size(kKeys); i += 2)
                    expect_pair(p[i / 8][i / 2 % Fragment::kPairsOfOperand], keeps(i), keeps(i + 1));
            }
}

TEST(KeptScores, AnOperandIsDroppedInPlace) {
    KeptScores<64, true> kept;
    kept.bits = 0x2468ACE1;
    uint32_t p[4][Fragment::kPairsOfOperand];
    for (auto& operand : p)
        for (uint32_t& pair : operand) pair = ~0u;
    drop_operand(p, kept);
    for (int32_t i = 0; i < Fragment::size(64); i += 2)
        expect_pair(p[i / 8][i / 2 % Fragment::kPairsOfOperand], kept.keeps(i), kept.keeps(i + 1));
}

TEST(KeptScores, BytesAreChosenAsPrmtDoes) {
    EXPECT_EQ(chosen_bytes(0x33221100, 0x77665544, 0x7250), 0x77225500u);
    EXPECT_EQ(chosen_bytes(0x33221100, 0x77665544, 0x2705), 0x22770055u);
    EXPECT_EQ(chosen_bytes(0x33221100, 0x77665544, 0x5410), 0x55441100u);
    EXPECT_EQ(chosen_bytes(0x33221100, 0x77665544, 0x7632), 0x77663322u);
}

}  // namespace
}  // namespace foveal::sm90
