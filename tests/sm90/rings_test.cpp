// The forward kernel's barriers, played through on the host: producers and warpgroups wait and arrive in the kernel's
// order, over tiles whose warpgroups need different blocks (own_work() in src/sm90/forward/schedule.hpp). All must come
// to their end. The consumers are the kernel's own walk and steps (walk.hpp, steps.hpp); what the producers do
// (cursor.cuh, producer.cuh) is told here a second time: who changes it there changes it here.
#include <gtest/gtest.h>

#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "sm90/forward/schedule.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/walk.hpp"

namespace foveal::sm90 {
namespace {

constexpr OwnWork kNoRows{{{0, 0}, {0, 0}}, 0, 0};
bool has_rows(const OwnWork& own) { return own.blocks.visit.size() > 0; }

struct Tile {
    Range visit;
    std::vector<OwnWork> own;  // of each warpgroup; kNoRows: it has none
};

// Every `arrivals_a_phase` arrivals end a phase.
struct Barrier {
    int arrivals_a_phase;
    int arrivals = 0;
    bool has_ended(uint32_t parity) const { return (static_cast<uint32_t>(arrivals / arrivals_a_phase) & 1) != parity; }
};

struct Event {
    enum Kind { kWait, kArrive, kTakeTurn, kPassTurn } kind;
    int at;               // barrier, or warpgroup whose turn it is
    uint32_t parity = 0;  // kWait: of the phase that is to have ended
};
using Events = std::vector<Event>;

// The barriers of one CTA, and what each agent does at them, one event after the other.
template <int kTileIndex>
class Rings {
    static constexpr ForwardTile kTile = kForwardTiles[kTileIndex].tile;
    static constexpr int kQueryBarriers = kTile.query_buffers * kTile.query_tiles();

   public:
    // gathers: K and V come row by row, and a block is handed on when the next one is looked up (gather_blocks()).
    Rings(const std::vector<Tile>& tiles, bool gathers) : tiles_(tiles) {
        for (int i = 0; i < 2 * kTile.stages; ++i) barriers_.push_back({1});                // K, V full
        for (int i = 0; i < 2 * kTile.stages; ++i) barriers_.push_back({kTile.consumers});  // K, V free
        for (int i = 0; i < kQueryBarriers; ++i) barriers_.push_back({1});                  // Q full
        for (int i = 0; i < kQueryBarriers; ++i)
            barriers_.push_back({kTile.shares_rows ? kTile.consumers : 1});               // free
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({1});                    // Work full
        for (int i = 0; i < kWorkSlots; ++i) barriers_.push_back({3 + kTile.consumers});  // Work free
        produce_work();
        for (const int which : {0, 1}) gathers ? gather_blocks(which) : produce_blocks(which);
        produce_queries();
        for (int w = 0; w < kTile.consumers; ++w) agents_.push_back(Warpgroup(*this, w).events());
    }

    // false: some wait for ever, or have not released every block of K and V. backwards: the last agent goes first. The
    // order must not matter.
    bool run(bool backwards) {
        for (Barrier& barrier : barriers_) barrier.arrivals = 0;
        std::vector<int> turns(kTile.consumers, 0);
        std::vector<size_t> at(agents_.size(), 0);
        for (bool moved = true; moved;) {
            moved = false;
            for (size_t i = 0; i < agents_.size(); ++i) {
                const size_t a = backwards ? agents_.size() - 1 - i : i;
                for (; at[a] < agents_[a].size() && pass(agents_[a][at[a]], turns); ++at[a]) moved = true;
            }
        }
        for (size_t a = 0; a < agents_.size(); ++a)
            if (at[a] < agents_[a].size()) return false;
        for (int i = 0; i < 4 * kTile.stages; ++i) {
            const Barrier& barrier = barriers_[static_cast<size_t>(i)];
            if (barrier.arrivals % barrier.arrivals_a_phase != 0) return false;
        }
        return true;
    }

   private:
    bool pass(const Event& event, std::vector<int>& turns) {
        const auto at = static_cast<size_t>(event.at);
        if (event.kind == Event::kWait) return barriers_[at].has_ended(event.parity);
        if (event.kind == Event::kArrive) ++barriers_[at].arrivals;
        if (event.kind == Event::kPassTurn) ++turns[(at + 1) % turns.size()];
        if (event.kind == Event::kTakeTurn && turns[at]-- == 0) return ++turns[at], false;
        return true;
    }

    // Numbers of the barriers. which: K (0) or V (1); w: warpgroup.
    static int full(int which, int slot) { return which * kTile.stages + slot; }
    static int free_of(int which, int slot) { return (2 + which) * kTile.stages + slot; }
    static int query(int slot, int w, bool free) {
        return 4 * kTile.stages + (free ? kQueryBarriers : 0) + slot * kTile.query_tiles() +
               (kTile.shares_rows ? 0 : w);
    }
    static int work(int slot, bool free) {
        return 4 * kTile.stages + 2 * kQueryBarriers + (free ? kWorkSlots : 0) + slot;
    }

    static uint32_t parity(int n, int ring) { return static_cast<uint32_t>(n / ring) & 1; }
    static Event wait_work(int n) { return {Event::kWait, work(n % kWorkSlots, false), parity(n, kWorkSlots)}; }
    static Event free_work(int n) { return {Event::kArrive, work(n % kWorkSlots, true)}; }
    int count() const { return static_cast<int>(tiles_.size()); }

    // The producers, after cursor.cuh and producer.cuh. The last tile says that there is none.
    void produce_work() {
        Events events;
        for (int n = 0; n <= count(); ++n) {
            events.push_back({Event::kWait, work(n % kWorkSlots, true), parity(n, kWorkSlots) ^ 1});
            events.push_back({Event::kArrive, work(n % kWorkSlots, false)});
        }
        agents_.push_back(events);
    }

    void produce_blocks(int which) {
        Events events;
        int block = 0;
        for (int n = 0; n <= count(); ++n) {
            events.push_back(wait_work(n));
            events.push_back(free_work(n));
            if (n == count()) break;
            for (int i = 0; i < tiles_[static_cast<size_t>(n)].visit.size(); ++i, ++block) {
                const int slot = block % kTile.stages;
                events.push_back({Event::kWait, free_of(which, slot), parity(block, kTile.stages) ^ 1});
                events.push_back({Event::kArrive, full(which, slot)});
            }
        }
        agents_.push_back(events);
    }

    void gather_blocks(int which) {
        Events events;
        int block = 0;
        const auto hand_on = [&] {
            if (block > 0) events.push_back({Event::kArrive, full(which, (block - 1) % kTile.stages)});
        };
        for (int n = 0; n <= count(); ++n) {
            events.push_back(wait_work(n));
            events.push_back(free_work(n));
            if (n == count()) break;
            for (int i = 0; i < tiles_[static_cast<size_t>(n)].visit.size(); ++i, ++block) {
                hand_on();
                const int slot = block % kTile.stages;
                events.push_back({Event::kWait, free_of(which, slot), parity(block, kTile.stages) ^ 1});
            }
        }
        hand_on();
        agents_.push_back(events);
    }

    void produce_queries() {
        Events events;
        for (int n = 0; n <= count(); ++n) {
            events.push_back(wait_work(n));
            events.push_back(free_work(n));
            const int slot = n % kTile.query_buffers;
            for (int w = 0; w < kTile.query_tiles(); ++w) {
                events.push_back({Event::kWait, query(slot, w, true), parity(n, kTile.query_buffers) ^ 1});
                events.push_back({Event::kArrive, query(slot, w, false)});
            }
        }
        agents_.push_back(events);
    }

    // A consumer that computes nothing: it takes the way and the steps of the kernel's (walk.hpp, steps.hpp), and
    // writes down what it does at the barriers.
    class Warpgroup : public Walk<Warpgroup, kTile> {
        friend Walk<Warpgroup, kTile>;
        friend Steps<Warpgroup, kTile>;

       public:
        Warpgroup(const Rings& rings, int w) : rings_(rings), w_(w) {}
        Events events() {
            this->run();
            return events_;
        }

       private:
        void wait_keys(RingPosition<kTile.stages> at) { wait(full(0, at.slot), at.parity); }
        void wait_values(RingPosition<kTile.stages> at) { wait(full(1, at.slot), at.parity); }
        void wait_queries(RingPosition<kTile.query_buffers> at) { wait(query(at.slot, w_, false), at.parity); }
        void release_keys(int slot) { arrive(free_of(0, slot)); }
        void release_values(int slot) { arrive(free_of(1, slot)); }
        void free_queries(int slot) { arrive(query(slot, w_, true)); }
        void free_work(int slot) { arrive(work(slot, true)); }

        void take_turn() { take_turn_of(w_); }
        void take_last_turn() { take_turn_of(w_); }
        void pass_turn() { pass_turn_of(w_); }
        void take_turn_of(int w) {
            if (kTile.takes_turns) events_.push_back({Event::kTakeTurn, w});
        }
        void pass_turn_of(int w) {
            if (kTile.takes_turns) events_.push_back({Event::kPassTurn, w});
        }

        uint32_t read_tile(BlockRange& blocks) {
            if (++tile_ == rings_.count()) return 0;
            blocks = own_work().blocks;
            blocks.unmasked = {blocks.visit.begin, (blocks.visit.begin + blocks.visit.end) / 2};
            uint32_t computed = 0;
            for (int q = 0; q < kTile.query_tiles(); ++q)
                if (has_rows(tile().own[static_cast<size_t>(q)])) computed |= 1U << q;
            return computed;
        }
        bool is_own(uint32_t computed) const { return (computed >> (kTile.shares_rows ? 0 : w_) & 1) != 0; }
        const OwnWork& own_work() const { return tile().own[static_cast<size_t>(w_)]; }
        int blocks_of_tile() const { return tile().visit.size(); }
        int warpgroup() const { return w_; }
        const Tile& tile() const { return rings_.tiles_[static_cast<size_t>(tile_)]; }

        // step() and capped_step() wait and release alike; so each gets its share.
        bool caps_late() const { return true; }
        int block_of(const BlockRange&, int i) const { return i; }

        // What the kernel's consumer does elsewhere than at the barriers.
        struct Nothing {};
        using Exponentials = Nothing;
        using CappedProbabilities = Nothing;
        using Scale = Nothing;
        void converge() {}
        bool any_of_warp(bool condition) { return condition; }
        void fetch_bias(const BlockRange&, int) {}
        void drop(const BlockRange&, int) {}
        void issue_scores(int) {}
        void issue_most_of_output(int, bool) {}
        void issue_rest_of_output(int) {}
        void finish_scores() {}
        void finish_scores_beside_output() {}
        void finish_products() {}
        void start_rows(BlockRange&) {}
        void take_exponents(const BlockRange&, int) {}
        Nothing totals() { return {}; }
        void first_probabilities() {}
        void first_exponentials(Nothing&) {}
        template <bool kFirstBlock>
        bool last_exponentials(const Nothing&) {
            return false;
        }
        void rescale(BlockRange&, const Nothing&) {}
        struct Capped {
            explicit Capped(const Warpgroup&) {}
        };
        void first_capped(const Capped&, Nothing&) {}
        void last_capped(BlockRange&, const Nothing&, const Capped&, const Nothing&) {}
        Nothing finish_rows(const Nothing&, int) { return {}; }
        void wait_staging() {}
        void stage(Nothing) {}
        void store(Nothing, int) {}
        void finish_stores() {}

        void wait(int barrier, uint32_t parity) { events_.push_back({Event::kWait, barrier, parity}); }
        void arrive(int barrier) { events_.push_back({Event::kArrive, barrier}); }

        const Rings& rings_;
        const int w_;
        int tile_ = -1;
        Events events_;
    };

    const std::vector<Tile>& tiles_;
    std::vector<Barrier> barriers_;
    std::vector<Events> agents_;
};

template <int kTileIndex>
bool everybody_ends(const std::vector<Tile>& tiles) {
    for (const bool gathers : {false, true}) {
        Rings<kTileIndex> rings(tiles, gathers);
        if (!rings.run(false) || !rings.run(true)) return false;
    }
    return true;
}

// For a tile that is known at run time.
template <size_t... kTileIndices>
bool everybody_ends(size_t tile_index, const std::vector<Tile>& tiles, std::index_sequence<kTileIndices...>) {
    bool ends = false;
    ((tile_index == kTileIndices && (ends = everybody_ends<int{kTileIndices}>(tiles))), ...);
    return ends;
}

// All row blocks of `heads` heads in packs of 2^heads_log2, twice, the second time from the end: tiles of all lengths
// follow each other. passed_over_blocks: ForwardPlan's.
std::vector<Tile> tiles_of(const ForwardTile& tile, int heads, int heads_log2, int passed_over_blocks, Band band,
                           int len_q, bool ascending) {
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

constexpr int kNone = kUnlimitedWidth;

// Every tile, every way to lay it over a sequence: how many there are.
int expect_everybody_ends(Band band, int len_q) {
    struct Course {
        int heads, heads_log2, passed_over_blocks;
        bool ascending;
    };
    constexpr Course kCourses[] = {{1, 0, 1, true}, {1, 0, 4, false},  {2, 1, 4, true},
                                   {4, 2, 1, true}, {11, 3, 4, false}, {11, 3, 1, true}};
    int problems = 0;
    for (size_t index = 0; index < std::size(kForwardTiles); ++index) {
        const ForwardTileEntry& entry = kForwardTiles[index];
        for (const auto& [heads, heads_log2, passed_over_blocks, ascending] : kCourses) {
            if (entry.tile.segments() % (1 << heads_log2) != 0) continue;
            const auto tiles = tiles_of(entry.tile, heads, heads_log2, passed_over_blocks, band, len_q, ascending);
            for (const Tile& tile : tiles)
                for (const OwnWork& own : tile.own) {
                    if (!has_rows(own)) continue;
                    EXPECT_GE(own.steps_before, 0);
                    EXPECT_GE(own.steps_after, 0);
                    EXPECT_EQ(own.steps_before + own.blocks.visit.size() + own.steps_after, tile.visit.size());
                }
            EXPECT_TRUE(everybody_ends(index, tiles, std::make_index_sequence<std::size(kForwardTiles)>()))
                << "d " << entry.tile.head_dim << ", " << entry.tile.rows() << " rows, keys i + " << band.low
                << " to i + " << band.high << ", chunk " << band.chunk << ", offset " << band.off << ", " << len_q
                << " x " << band.len_k;
            ++problems;
        }
    }
    return problems;
}

TEST(Rings, NobodyWaitsForEver) {
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
    for (const Window& window : windows)
        for (const int len_q : {1, 64, 65, 200, 257, 512, 700, 1000})
            for (const int len_k : {1, 64, 100, 513, 1300}) {
                problems += expect_everybody_ends(band_of(window, len_q, len_k), len_q);
                if (testing::Test::HasFailure()) return;
            }
    EXPECT_GT(problems, 1000);
}

TEST(Rings, NobodyWaitsForEverWhateverTheOffset) {
    const Window windows[] = {{kNone, 0}, {63, 0}, {300, 0}, {10, 10}, {0, 200}, {100, kNone}, {kNone, 0, false, 100}};
    for (const Window& window : windows)
        for (const int off : {-kMaxSequenceLength, -600, -65, 37, 450, 512, 700, 1301, kMaxSequenceLength})
            for (const int len_q : {1, 65, 257, 700})
                for (const int len_k : {0, 1, 100, 513, 1300}) {
                    expect_everybody_ends(band_at(window, off, len_k), len_q);
                    if (testing::Test::HasFailure()) return;
                }
}

// The test can fail: warpgroups that are further apart than the ring is long do wait for ever.
TEST(Rings, AWarpgroupTooFarAheadIsFound) {
    const OwnWork all{{{0, 20}, {0, 0}}, 0, 0}, first{{{0, 1}, {0, 0}}, 0, 19};
    EXPECT_TRUE(everybody_ends<kTileD64>({{{0, 20}, {all, all, all, all}}}));
    EXPECT_FALSE(everybody_ends<kTileD64>({{{0, 20}, {first, all, all, all}}}));
}

}  // namespace
}  // namespace foveal::sm90
