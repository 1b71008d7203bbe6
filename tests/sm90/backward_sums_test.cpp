// Who sums what of a bias's gradient (src/sm90/backward/score_sums.hpp): every score once, in the result that it
// belongs to.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "sm90/backward/score_sums.hpp"
#include "sm90/backward/sequences.hpp"

namespace foveal::sm90 {
namespace {

struct SumsProblem {
    BiasSums sums;
    int32_t len_q, len_k;
    Window window;

    Band band() const { return band_of(window, len_q, len_k); }
    std::string text() const {
        std::string text = std::to_string(len_q) + " x " + std::to_string(len_k);
        for (const SumDimension& one : {sums.sequences, sums.heads, sums.queries, sums.keys})
            text += ", " + std::to_string(one.pieces) + (one.own ? " own" : " shared");
        return text + ", parts " + std::to_string(sums.parts);
    }
};

std::vector<SumsProblem> sums_problems() {
    std::vector<SumsProblem> all;
    std::mt19937 random(5);
    const auto any_of = [&](const std::vector<int32_t>& values) { return values[random() % values.size()]; };
    for (int i = 0; i < 400; ++i) {
        SumsProblem p;
        p.len_q = any_of({0, 1, 64, 65, 130, 300}), p.len_k = any_of({0, 1, 63, 64, 129, 500});
        p.sums.sequences = {any_of({0, 1, 2, 5}), random() % 2 == 0};
        p.sums.heads = {any_of({1, 2, 7}), random() % 2 == 0};
        p.sums.queries = {(p.len_q + 63) / 64, random() % 2 == 0};
        p.sums.keys = {(p.len_k + 63) / 64, random() % 2 == 0};
        p.sums.parts = p.sums.wanted_parts();
        p.window = Window{any_of({kUnlimitedWidth, 0, 1, 40, 128}), any_of({kUnlimitedWidth, 0, 9, 200}),
                          random() % 2 == 0, any_of({0, 0, 1, 50, 128})};
        all.push_back(p);
    }
    return all;
}

using Place = std::tuple<int32_t, int32_t, int32_t, int32_t>;

TEST(BackwardSums, EveryScoreOnceInItsResult) {
    for (const SumsProblem& p : sums_problems()) {
        const BiasSums& sums = p.sums;
        std::map<Place, int> visits;
        std::map<Place, int> results;
        for (int32_t result = 0; result < sums.results(); ++result) {
            const ScoreTiles at = sums.place(result);
            ++results[{at.sequence, at.head, at.query_tile, at.key_tile}];
            EXPECT_EQ(sums.first_summand(0), 0);
            EXPECT_EQ(sums.first_summand(sums.parts), sums.summands());
            for (int32_t n = 0; n < sums.summands(); ++n) {
                const ScoreTiles tiles = sums.summand(at, n);
                const Range keys = key_tiles_of(tiles, p.band(), p.len_q);
                for (int32_t key_tile = keys.begin; key_tile < keys.end; ++key_tile) {
                    ++visits[{tiles.sequence, tiles.head, tiles.query_tile, key_tile}];
                    ASSERT_EQ(at.sequence, sums.sequences.own ? tiles.sequence : 0) << p.text();
                    ASSERT_EQ(at.head, sums.heads.own ? tiles.head : 0) << p.text();
                    ASSERT_EQ(at.query_tile, sums.queries.own ? tiles.query_tile : 0) << p.text();
                    ASSERT_EQ(at.key_tile, sums.keys.own ? key_tile : 0) << p.text();
                }
            }
        }
        EXPECT_EQ(results.size(), static_cast<size_t>(sums.results())) << p.text();
        for (int32_t b = 0; b < sums.sequences.pieces; ++b)
            for (int32_t h = 0; h < sums.heads.pieces; ++h)
                for (int32_t i = 0; i < p.len_q; ++i) {
                    const Range keys = visible_keys(p.band(), i);
                    for (int32_t j = keys.begin; j < keys.end; ++j)
                        ASSERT_EQ((visits[{b, h, i / kBackwardQueries, j / kSumKeys}]), 1)
                            << p.text() << ", " << i << ", " << j;
                }
    }
}

// As many CTAs as a GPU needs, and no more parts than there is to sum; the batch does not count where its sequences
// have results of their own.
TEST(BackwardSums, Parts) {
    const auto parts_of = [](SumDimension b, SumDimension h, SumDimension q, SumDimension k) {
        return BiasSums{b, h, q, k}.wanted_parts();
    };
    EXPECT_EQ(parts_of({8, false}, {16, true}, {64, true}, {64, true}), 1);
    EXPECT_EQ(parts_of({8, false}, {16, false}, {4, true}, {4, true}), 8);
    EXPECT_EQ(parts_of({2, false}, {2, false}, {4, true}, {4, true}), 4);
    EXPECT_EQ(parts_of({8, true}, {16, false}, {4, true}, {4, true}), 8);
    EXPECT_EQ(parts_of({500, true}, {16, false}, {4, true}, {4, true}), 8);
    EXPECT_EQ(parts_of({1, false}, {1, false}, {1, false}, {1, false}), 1);
    EXPECT_EQ(parts_of({8, false}, {16, false}, {64, false}, {64, false}), kSumCtas);
    EXPECT_EQ(parts_of({0, false}, {16, true}, {4, true}, {4, true}), 1);
}

}  // namespace
}  // namespace foveal::sm90
