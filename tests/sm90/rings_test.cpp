// The forward kernel's barriers (cursor.cuh, producer.cuh, consumer.cuh), played through on the host: producers and
// warpgroups wait and arrive in the kernel's order, over tiles whose warpgroups need different blocks (own_work() in
// src/sm90/schedule.hpp). All must come to their end. Since every wait is for a count that only grows, the order in
// which they take turns does not matter. This tells the kernel's waits a second time: who changes them there changes
// them here.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "sm90/forward/schedule.hpp"
#include "sm90/forward/tiles.hpp"

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
    enum Kind { kWait, kArrive, kTakeTurn, kPassTurn } kind;
    int at;         // barrier, or warpgroup whose turn it is
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
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({1});                   // Work full
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({3 + tile.consumers});  // Work free
        produce_work();
        produce_blocks(0);
        produce_blocks(1);
        produce_queries();
        for (int w = 0; w < tile.consumers; ++w) agents_.push_back(Warpgroup(*this, w).run());
    }

    // false: some wait for ever.
    bool run() {
        std::vector<int> turns(static_cast<size_t>(tile_.consumers), 0);
        turns[0] = 1;  // the last warpgroup passes it before anything else
        std::vector<size_t> at(agents_.size(), 0);
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t a = 0; a < agents_.size(); ++a)
                for (; at[a] < agents_[a].size() && pass(agents_[a][at[a]], turns); ++at[a]) moved = true;
        }
        for (size_t a = 0; a < agents_.size(); ++a)
            if (at[a] < agents_[a].size()) return false;
        return true;
    }

   private:
    using Steps = std::vector<Step>;

    bool pass(const Step& step, std::vector<int>& turns) {
        const auto at = static_cast<size_t>(step.at);
        if (step.kind == Step::kWait) return barriers_[at].phases() >= step.phase;
        if (step.kind == Step::kArrive) ++barriers_[at].arrivals;
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
            steps.push_back({Step::kArrive, work_barrier(n, true)});
            for (int w = 0; w < tile_.query_tiles(); ++w) {
                steps.push_back({Step::kWait, query(n, w, true), n / tile_.query_buffers});
                steps.push_back({Step::kArrive, query(n, w, false)});
            }
        }
        agents_.push_back(steps);
    }

    // What warpgroup w does: the Consumer of consumer.cuh, and in its words.
    class Warpgroup {
       public:
        Warpgroup(const Rings& rings, int w) : rings_(rings), tile_(rings.tile_), w_(w) {}

        Steps run() {
            const int count = static_cast<int>(rings_.tiles_.size());
            wait_query(0);
            bool has_output = false;  // the last block's P V of the tile before is still to come
            for (int n = 0; n < count; ++n) {
                if (has_rows(own(n))) {
                    compute_tile(n, has_output);
                    has_output = true;
                    continue;
                }
                if (has_output) {
                    pass_over_keys();
                    last_output(n - 1);
                }
                pass_over_tile(n, has_output);
                has_output = false;
            }
            if (has_output)
                last_output(count - 1);
            else
                turn();
            if (tile_.takes_turns && w_ == 0) steps_.push_back({Step::kTakeTurn, 0});
            return steps_;
        }

       private:
        void compute_tile(int n, bool has_output) {
            if (!has_output) {
                skipped_ = 0;
                next_value_ = key_;
            }
            const int blocks = own(n).blocks.visit.size();
            skip_keys(own(n).steps_before);
            skipped_ += own(n).steps_before;
            steps_.push_back(rings_.full(0, key_));
            block(n, has_output, blocks == 1);
            if (has_output) free_work(n - 1);
            skip_values();
            for (int i = 1; i < blocks; ++i) block(n, true, i + 1 == blocks);
            if (tile_.query_buffers > 1) free_query(n);
            next_value_ = value_ + 1;
            skipped_ = own(n).steps_after;
            skip_keys(skipped_);
            wait_query(n + 1);
        }

        void pass_over_tile(int n, bool has_begun) {
            for (int i = 0; i < rings_.tiles_[static_cast<size_t>(n)].visit.size(); ++i, ++key_) {
                if (i > 0 || !has_begun) {
                    pass_over_keys();
                    turn();
                }
                steps_.push_back(rings_.full(1, key_));
                steps_.push_back({Step::kArrive, rings_.free_of(1, key_)});
            }
            free_query(n);
            free_work(n);
            wait_query(n + 1);
        }
        void pass_over_keys() {
            steps_.push_back(rings_.full(0, key_));
            steps_.push_back({Step::kArrive, rings_.free_of(0, key_)});
        }

        // The scores of the next block beside the output of the one before, if there is one.
        void block(int n, bool has_output, bool last) {
            if (has_output) steps_.push_back(rings_.full(1, value_));
            turn();
            steps_.push_back({Step::kArrive, rings_.free_of(0, key_)});
            if (last && tile_.query_buffers == 1) free_query(n);
            if (!last) steps_.push_back(rings_.full(0, key_ + 1));
            if (has_output) steps_.push_back({Step::kArrive, rings_.free_of(1, value_)});
            value_ = key_++;
        }

        void last_output(int n) {
            steps_.push_back(rings_.full(1, value_));
            turn();
            steps_.push_back({Step::kArrive, rings_.free_of(1, value_)});
            free_work(n);
            skip_values();
        }

        void skip_keys(int count) {
            for (; count > 0; --count, ++key_) {
                steps_.push_back(rings_.full(0, key_));
                turn();
                steps_.push_back({Step::kArrive, rings_.free_of(0, key_)});
            }
        }
        void skip_values() {
            for (int i = 0; i < skipped_; ++i) {
                steps_.push_back(rings_.full(1, next_value_ + i));
                steps_.push_back({Step::kArrive, rings_.free_of(1, next_value_ + i)});
            }
        }

        void turn() {
            if (!tile_.takes_turns) return;
            steps_.push_back({Step::kTakeTurn, w_});
            steps_.push_back({Step::kPassTurn, w_});
        }
        void wait_query(int n) {
            steps_.push_back({Step::kWait, rings_.query(n, w_, false), n / tile_.query_buffers + 1});
        }
        void free_query(int n) { steps_.push_back({Step::kArrive, rings_.query(n, w_, true)}); }
        void free_work(int n) { steps_.push_back({Step::kArrive, rings_.work_barrier(n, true)}); }
        const OwnWork& own(int n) const { return rings_.tiles_[static_cast<size_t>(n)].own[static_cast<size_t>(w_)]; }

        const Rings& rings_;
        const ForwardTile& tile_;
        const int w_;
        Steps steps_;
        int key_ = 0;                       // the next block
        int value_ = 0;                     // the block whose P V is still to come
        int next_value_ = 0, skipped_ = 0;  // V blocks that only other rows need: the first, and how many
    };

    const ForwardTile& tile_;
    const std::vector<Tile>& tiles_;
    std::vector<Barrier> barriers_;
    std::vector<Steps> agents_;
};

// All row blocks of `heads` heads in packs of 2^heads_log2, twice, the second time from the end: tiles of all lengths
// follow each other. passed_over_blocks: ForwardPlan's.
std::vector<Tile> tiles_of(const ForwardTile& tile, int heads, int heads_log2, int passed_over_blocks, Window window,
                           int len_q, int len_k, bool ascending) {
    const Band band = band_of(window, len_q, len_k);
    const int queries = tile.rows() >> heads_log2, own_queries = queries_of_warpgroup(heads_log2);
    std::vector<Tile> tiles;
    for (int row = 0; row < len_q; row += queries) {
        BlockRange blocks = kv_range(band, {row, min_i32(row + queries, len_q)}, tile.keys);
        if (blocks.visit.size() == 0) blocks = {{0, 1}, {0, 0}};
        for (int heads_left = heads; heads_left > 0; heads_left -= 1 << heads_log2) {
            Tile t{blocks.visit, {}};
            for (int w = 0; w < tile.consumers; ++w) {
                const int group = tile.shares_rows ? 0 : w * kWarpgroupWarps;
                const int begin = row + query_in_tile(group, heads_log2);
                const bool has_rows = begin < len_q && head_in_tile(group, heads_log2) < heads_left;
                if (!has_rows && blocks.visit.size() >= passed_over_blocks)
                    t.own.push_back(kNoRows);
                else if (tile.has_own_blocks())
                    t.own.push_back(own_work(band, band.chunk != 0, blocks, begin, own_queries, len_q, tile.keys,
                                             [&] { return ascending; }));
                else
                    t.own.push_back({blocks, 0, 0});
            }
            tiles.push_back(t);
        }
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
    struct Course {
        int heads, heads_log2, passed_over_blocks;
        bool ascending;
    };
    constexpr Course kCourses[] = {{1, 0, 1, true}, {1, 0, 4, false},  {2, 1, 4, true},
                                   {4, 2, 1, true}, {11, 3, 4, false}, {11, 3, 1, true}};
    int problems = 0;
    for (const ForwardTileEntry& entry : kForwardTiles) {
        for (const Window& window : windows)
            for (const int len_q : {1, 64, 65, 200, 257, 512, 700, 1000})
                for (const int len_k : {1, 64, 100, 513, 1300})
                    for (const auto& [heads, heads_log2, passed_over_blocks, ascending] : kCourses) {
                        if (entry.tile.segments() % (1 << heads_log2) != 0) continue;
                        const auto tiles = tiles_of(entry.tile, heads, heads_log2, passed_over_blocks, window, len_q,
                                                    len_k, ascending);
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

// The test can fail: warpgroups that are further apart than the ring is long do wait for ever.
TEST(Rings, AWarpgroupTooFarAheadIsFound) {
    const ForwardTile& tile = kForwardTiles[kTileD64].tile;
    const OwnWork all{{{0, 20}, {0, 0}}, 0, 0}, first{{{0, 1}, {0, 0}}, 0, 19};
    EXPECT_TRUE(Rings(tile, {{{0, 20}, {all, all, all, all}}}).run());
    EXPECT_FALSE(Rings(tile, {{{0, 20}, {first, all, all, all}}}).run());
}

}  // namespace
}  // namespace foveal::sm90
