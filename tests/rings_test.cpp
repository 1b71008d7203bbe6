// The forward kernel's barriers (src/sm90/forward.cuh), played through on the host: producers and warpgroups wait and
// arrive in the kernel's order, over tiles whose warpgroups need different blocks (own_work() in
// src/sm90/schedule.hpp). All must come to their end. Since every wait is for a count that only grows, the order in
// which they take turns does not matter. This tells the kernel's waits a second time: who changes them there changes
// them here.
//
// Consumers tell nobody that they have read a tile's Work for the last time: the Q producer frees its slot for them,
// kReadTiles tiles later. They must then have done so.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "sm90/schedule.hpp"
#include "sm90/tiles.hpp"

namespace foveal::sm90 {
namespace {

constexpr OwnWork kNoRows{{{0, 0}, {0, 0}}, 0, 0};
bool has_rows(const OwnWork& own) { return own.blocks.visit.size() > 0; }

struct Tile {
    Range visit;
    std::vector<OwnWork> own;  // of each warpgroup; kNoRows: it has none
};

// A counter; every `arrivals_a_phase` arrivals end a phase.
struct Barrier {
    int arrivals_a_phase;
    int arrivals = 0;
    int phases() const { return arrivals / arrivals_a_phase; }
};

struct Step {
    enum Kind { kWait, kArrive, kTakeTurn, kPassTurn, kPublish, kLastRead } kind;
    int at;         // barrier; warpgroup whose turn it is; tile whose Work is published, or read for the last time
    int phase = 0;  // kWait: until so many have ended
};

// What happens at the barriers of one CTA, agent by agent.
class Rings {
   public:
    Rings(const ForwardTile& tile, const std::vector<Tile>& tiles) : tile_(tile), tiles_(tiles) {
        for (int i = 0; i < 2 * tile.stages; ++i) barriers_.push_back({1});                          // K, V full
        for (int i = 0; i < 2 * tile.stages; ++i) barriers_.push_back({tile.consumers});             // K, V free
        for (int i = 0; i < tile.query_buffers * tile.query_tiles(); ++i) barriers_.push_back({1});  // Q full
        for (int i = 0; i < tile.query_buffers * tile.query_tiles(); ++i)                            // Q free
            barriers_.push_back({tile.shares_rows ? tile.consumers : 1});
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({1});               // Work full
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({kProducers - 1});  // Work free
        produce_work();
        produce_blocks(0);
        produce_blocks(1);
        produce_queries();
        for (int w = 0; w < tile.consumers; ++w) consume(w);
    }

    // false: some wait for ever.
    bool run() {
        const std::vector<size_t> at = advance(kNone);
        for (size_t a = 0; a < agents_.size(); ++a)
            if (at[a] < agents_[a].size()) return false;
        return true;
    }

    // The last tile whose Work is published if warpgroup w stays where it reads the Work of tile n for the last time,
    // and the others go as far as they can.
    int published_before_last_read(int w, int n) {
        const auto agent = static_cast<size_t>(kProducers + w);
        const Steps& steps = agents_[agent];
        size_t i = 0;
        while (steps[i].kind != Step::kLastRead || steps[i].at != n) ++i;
        advance(agent, i);
        return published_;
    }

   private:
    using Steps = std::vector<Step>;
    static constexpr int kProducers = 4;
    static constexpr size_t kNone = ~size_t{0};

    // All go as far as they can, but `stopped` not beyond its step `end`. Where they then are.
    std::vector<size_t> advance(size_t stopped, size_t end = 0) {
        std::vector<int> turns(static_cast<size_t>(tile_.consumers), 0);
        turns[0] = 1;  // the last warpgroup passes it before anything else
        std::vector<size_t> at(agents_.size(), 0);
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t a = 0; a < agents_.size(); ++a)
                for (; at[a] < (a == stopped ? end : agents_[a].size()) && pass(agents_[a][at[a]], turns); ++at[a])
                    moved = true;
        }
        return at;
    }

    bool pass(const Step& step, std::vector<int>& turns) {
        const auto at = static_cast<size_t>(step.at);
        if (step.kind == Step::kWait) return barriers_[at].phases() >= step.phase;
        if (step.kind == Step::kArrive) ++barriers_[at].arrivals;
        if (step.kind == Step::kPublish) published_ = step.at;
        if (step.kind == Step::kPassTurn) ++turns[(at + 1) % turns.size()];
        if (step.kind == Step::kTakeTurn && turns[at]-- == 0) return ++turns[at], false;
        return true;
    }

    // The n-th block of K (which = 0) or V (1), and the n-th tile's Q of warpgroup w.
    Step full(int which, int n) const {
        return {Step::kWait, which * tile_.stages + n % tile_.stages, n / tile_.stages + 1};
    }
    int free_of(int which, int n) const { return (2 + which) * tile_.stages + n % tile_.stages; }
    int query(int n, int w, bool free) const {
        return 4 * tile_.stages + ((free ? tile_.query_buffers : 0) + n % tile_.query_buffers) * tile_.query_tiles() +
               (tile_.shares_rows ? 0 : w);
    }

    Step work_full(int n) const { return {Step::kWait, work_barrier(n, false), n / kWorkSlots + 1}; }
    int work_barrier(int n, bool free) const {
        return 4 * tile_.stages + 2 * tile_.query_buffers * tile_.query_tiles() + (free ? kWorkSlots : 0) +
               n % kWorkSlots;
    }

    // The last tile says that there is none.
    void produce_work() {
        Steps steps;
        for (int n = 0; n <= static_cast<int>(tiles_.size()); ++n) {
            steps.push_back({Step::kWait, work_barrier(n, true), n / kWorkSlots});
            steps.push_back({Step::kPublish, n});
            steps.push_back({Step::kArrive, work_barrier(n, false)});
        }
        agents_.push_back(steps);
    }

    void produce_blocks(int which) {
        Steps steps;
        int block = 0;
        for (int n = 0; n <= static_cast<int>(tiles_.size()); ++n) {
            steps.push_back(work_full(n));
            steps.push_back({Step::kArrive, work_barrier(n, true)});
            if (n == static_cast<int>(tiles_.size())) break;
            for (int i = 0; i < tiles_[static_cast<size_t>(n)].visit.size(); ++i, ++block) {
                steps.push_back({Step::kWait, free_of(which, block), block / tile_.stages});
                steps.push_back({Step::kArrive, full(which, block).at});
            }
        }
        agents_.push_back(steps);
    }

    void produce_queries() {
        Steps steps;
        for (int n = 0; n <= static_cast<int>(tiles_.size()); ++n) {
            steps.push_back(work_full(n));
            for (int w = 0; w < tile_.query_tiles(); ++w) {
                steps.push_back({Step::kWait, query(n, w, true), n / tile_.query_buffers});
                steps.push_back({Step::kArrive, query(n, w, false)});
            }
            if (n >= kReadTiles) steps.push_back({Step::kArrive, work_barrier(n - kReadTiles, true)});
        }
        agents_.push_back(steps);
    }

    // Consumer::run() of warpgroup w. has_output: the last block's P V of the tile before is still to come.
    void consume(int w) {
        Steps steps;
        int key = 0, value = 0;
        const auto wait_query = [&](int n) {
            steps.push_back({Step::kWait, query(n, w, false), n / tile_.query_buffers + 1});
        };
        const auto turn = [&] {
            if (!tile_.takes_turns) return;
            steps.push_back({Step::kTakeTurn, w});
            steps.push_back({Step::kPassTurn, w});
        };
        const auto skip_keys = [&](int count) {
            for (; count > 0; --count, ++key) {
                steps.push_back(full(0, key));
                turn();
                steps.push_back({Step::kArrive, free_of(0, key)});
            }
        };
        const auto skip_values = [&](int from, int count) {
            for (; count > 0; --count, ++from) {
                steps.push_back(full(1, from));
                steps.push_back({Step::kArrive, free_of(1, from)});
            }
        };
        // The scores of the next block beside the output of the one before, `value`, if there is one.
        const auto block = [&](int n, bool has_output, bool last) {
            if (has_output) steps.push_back(full(1, value));
            turn();
            steps.push_back({Step::kArrive, free_of(0, key)});
            if (last && tile_.query_buffers == 1) steps.push_back({Step::kArrive, query(n, w, true)});
            if (!last) steps.push_back(full(0, key + 1));
            if (has_output) steps.push_back({Step::kArrive, free_of(1, value)});
            value = key++;
        };
        const auto own = [&](int n) -> const OwnWork& {
            return tiles_[static_cast<size_t>(n)].own[static_cast<size_t>(w)];
        };

        const auto pass_over_keys = [&] {
            steps.push_back(full(0, key));
            steps.push_back({Step::kArrive, free_of(0, key)});
        };
        const auto pass_over_tile = [&](int n, bool has_begun) {
            for (int i = 0; i < tiles_[static_cast<size_t>(n)].visit.size(); ++i, ++key) {
                if (i > 0 || !has_begun) {
                    pass_over_keys();
                    turn();
                }
                steps.push_back(full(1, key));
                steps.push_back({Step::kArrive, free_of(1, key)});
            }
            steps.push_back({Step::kLastRead, n});
            steps.push_back({Step::kArrive, query(n, w, true)});
            wait_query(n + 1);
        };
        const auto last_output = [&](int n, int next_value, int skipped) {
            steps.push_back(full(1, value));
            turn();
            steps.push_back({Step::kArrive, free_of(1, value)});
            steps.push_back({Step::kLastRead, n});
            skip_values(next_value, skipped);
        };

        wait_query(0);
        const int count = static_cast<int>(tiles_.size());
        bool has_output = false;
        int skipped = 0, next_value = 0;
        for (int n = 0; n < count; ++n) {
            if (!has_rows(own(n))) {
                if (has_output) {
                    pass_over_keys();
                    last_output(n - 1, next_value, skipped);
                }
                pass_over_tile(n, has_output);
                has_output = false;
                continue;
            }
            if (!has_output) {
                skipped = 0;
                next_value = key;
            }
            const int blocks = own(n).blocks.visit.size();
            skip_keys(own(n).steps_before);
            skipped += own(n).steps_before;
            steps.push_back(full(0, key));
            block(n, has_output, blocks == 1);
            if (has_output) steps.push_back({Step::kLastRead, n - 1});  // to store its output
            skip_values(next_value, skipped);
            for (int i = 1; i < blocks; ++i) block(n, true, i + 1 == blocks);
            if (tile_.query_buffers > 1) steps.push_back({Step::kArrive, query(n, w, true)});
            next_value = value + 1;
            skipped = own(n).steps_after;
            skip_keys(skipped);
            wait_query(n + 1);
            has_output = true;
        }
        if (has_output)
            last_output(count - 1, next_value, skipped);
        else
            turn();
        if (tile_.takes_turns && w == 0) steps.push_back({Step::kTakeTurn, 0});
        agents_.push_back(steps);
    }

    const ForwardTile& tile_;
    const std::vector<Tile>& tiles_;
    std::vector<Barrier> barriers_;
    std::vector<Steps> agents_;  // kProducers, then the warpgroups
    int published_ = -1;
};

// All row blocks of one head, twice, the second time from the end: tiles of all lengths follow each other.
std::vector<Tile> tiles_of(const ForwardTile& tile, Window window, int len_q, int len_k, bool ascending) {
    const Band band = band_of(window, len_q, len_k);
    std::vector<Tile> tiles;
    for (int row = 0; row < len_q; row += tile.rows()) {
        BlockRange blocks = kv_range(band, {row, min_i32(row + tile.rows(), len_q)}, tile.keys);
        if (blocks.visit.size() == 0) blocks = {{0, 1}, {0, 0}};
        Tile t{blocks.visit, {}};
        for (int w = 0; w < tile.consumers; ++w) {
            const int begin = row + (tile.shares_rows ? 0 : w * kWarpgroupRows);
            if (begin >= len_q)
                t.own.push_back(kNoRows);
            else if (tile.has_own_blocks())
                t.own.push_back(
                    own_work(band, band.chunk != 0, blocks, begin, len_q, tile.keys, [&] { return ascending; }));
            else
                t.own.push_back({blocks, 0, 0});
        }
        tiles.push_back(t);
    }
    std::vector<Tile> both = tiles;
    both.insert(both.end(), tiles.rbegin(), tiles.rend());
    return both;
}

TEST(Rings, NobodyWaitsForEver) {
    constexpr int kNone = kUnlimitedWidth;
    const Window windows[] = {{kNone, kNone},
                              {kNone, 0},
                              {0, 0},
                              {63, 0},
                              {64, 0},
                              {300, 0},
                              {10, 10},
                              {0, 200},
                              {100, kNone},
                              {kNone, 0, true},
                              {100, 5, true},
                              {kNone, 0, false, 100},
                              {kNone, kNone, false, 256}};
    int problems = 0;
    for (const ForwardTileEntry& entry : kForwardTiles) {
        for (const Window& window : windows)
            for (const int len_q : {1, 64, 65, 200, 257, 512, 700, 1000})
                for (const int len_k : {1, 64, 100, 513, 1300})
                    for (const bool ascending : {true, false}) {
                        const auto tiles = tiles_of(entry.tile, window, len_q, len_k, ascending);
                        for (const Tile& tile : tiles)
                            for (const OwnWork& own : tile.own) {
                                if (!has_rows(own)) continue;
                                ASSERT_GE(own.steps_before, 0);
                                ASSERT_GE(own.steps_after, 0);
                                ASSERT_EQ(own.steps_before + own.blocks.visit.size() + own.steps_after,
                                          tile.visit.size());
                            }
                        ASSERT_TRUE(Rings(entry.tile, tiles).run())
                            << "d " << entry.tile.head_dim << ", " << entry.tile.rows() << " rows, window "
                            << window.left << ' ' << window.right << " chunk " << window.chunk << ", " << len_q << " x "
                            << len_k;
                        ++problems;
                    }
    }
    EXPECT_GT(problems, 1000);
}

TEST(Rings, WorkIsReadBeforeItsSlotIsWrittenAgain) {
    int furthest = 0;  // a tile published ahead of one that is still read
    for (const ForwardTileEntry& entry : kForwardTiles) {
        const ForwardTile& tile = entry.tile;
        for (const Window& window : {Window{kUnlimitedWidth, kUnlimitedWidth}, Window{kUnlimitedWidth, 0}})
            for (const int len_k : {32, 64, 512})
                for (const int len_q : {8 * tile.rows(), 7 * tile.rows() + 1}) {
                    const auto tiles = tiles_of(tile, window, len_q, len_k, true);
                    for (int w = 0; w < tile.consumers; ++w)
                        for (int n = 0; n < static_cast<int>(tiles.size()); ++n) {
                            const int ahead = Rings(tile, tiles).published_before_last_read(w, n) - n;
                            ASSERT_LT(ahead, kWorkSlots)
                                << "d " << tile.head_dim << ", tile " << n << ", warpgroup " << w;
                            furthest = std::max(furthest, ahead);
                        }
                }
    }
    EXPECT_EQ(furthest, kWorkSlots - 1) << "a slot is not needed";
}

// The test can fail: warpgroups that are further apart than the ring is long do wait for ever.
TEST(Rings, AWarpgroupTooFarAheadIsFound) {
    const ForwardTile& tile = kForwardTiles[kTileD64].tile;
    const OwnWork all{{{0, 20}, {0, 0}}, 0, 0}, first{{{0, 1}, {0, 0}}, 0, 19};
    EXPECT_TRUE(Rings(tile, {{{0, 20}, {all, all, all, all}}}).run());
    EXPECT_FALSE(Rings(tile, {{{0, 20}, {first, all, all, all}}}).run());
}

}  // namespace
}  // namespace foveal::sm90
