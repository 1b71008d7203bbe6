// The order of the backward's tasks (src/sm90/backward/schedule.hpp): every place occurs once, what a task visits is
// what the mask says, and nobody waits for a task that comes later in the list.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "sm90/backward/schedule.hpp"
#include "sm90/backward/sequences.hpp"

namespace foveal::sm90 {
namespace {

struct Problem {
    int32_t len_q, len_k, heads_k, batch;
    bool alike;  // else as if the lengths were not known to be the same
    Window window;

    std::string text() const {
        return std::to_string(len_q) + " x " + std::to_string(len_k) + ", " + std::to_string(heads_k) +
               " heads, left " + std::to_string(window.left) + ", right " + std::to_string(window.right) + ", chunk " +
               std::to_string(window.chunk) + (window.top_left ? ", top-left" : "");
    }
    BackwardSequences sequences() const {
        return {{len_q, nullptr, nullptr}, {len_k, nullptr, nullptr}, window, batch, 0};
    }
};

std::vector<Problem> problems() {
    std::vector<Problem> all;
    std::mt19937 random(7);
    const auto any_of = [&](const std::vector<int32_t>& values) { return values[random() % values.size()]; };
    for (int i = 0; i < 400; ++i)
        all.push_back({any_of({1, 5, 63, 64, 65, 128, 300, 640, 1000}), any_of({1, 64, 127, 128, 129, 300, 1000, 2000}),
                       any_of({1, 2, 3, 16, 40}), any_of({1, 2, 5, 16}), random() % 2 == 0,
                       Window{any_of({kUnlimitedWidth, 0, 1, 40, 128, 300}), any_of({kUnlimitedWidth, 0, 0, 9, 200}),
                              random() % 2 == 0, any_of({0, 0, 1, 50, 128, 400})}});
    return all;
}

// All tasks, in the order of the list.
std::vector<BackwardTask> tasks_of(const Problem& p) {
    const BackwardSequences sequences = p.sequences();
    const BackwardSequence sequence = sequences.of(0);
    const Range key_tiles = seen_key_tiles(sequence.seen);
    const TaskOrder order = task_order(key_tiles, p.heads_k, p.alike);
    std::vector<BackwardTask> tasks(static_cast<size_t>(order.tasks() * p.batch));
    for (int32_t b = 0; b < p.batch; ++b)
        for (int32_t t = 0; t < order.tasks(); ++t) {
            const TaskPlace place = task_place(order, t);
            const int32_t at = p.alike ? place_among_alike(order, place, b, p.batch) : b * order.tasks() + t;
            tasks.at(static_cast<size_t>(at)) =
                task_of(sequences, sequence, b, place.head_k, (key_tiles.begin + place.key_tile) * kBackwardKeys,
                        kBackwardKeys, place.ascends);
        }
    return tasks;
}

// Of a query tile and `keys` keys: does some row see a key, and does each row see each?
struct Seen {
    bool some = false, all = true;
};
Seen seen_of(const Band& band, int32_t len_q, int32_t query_tile, int32_t key, int32_t keys) {
    Seen seen;
    for (int32_t i = query_tile * kBackwardQueries; i < (query_tile + 1) * kBackwardQueries; ++i) {
        const Range visible = visible_keys(band, i);
        if (i < len_q) seen.some |= visible.begin < min_i32(visible.end, key + keys) && visible.end > key;
        seen.all &= visible.begin <= key && visible.end >= key + keys;
    }
    return seen;
}

TEST(BackwardSchedule, EveryPlaceOccursOnce) {
    for (const Problem& p : problems()) {
        const std::vector<BackwardTask> tasks = tasks_of(p);
        std::set<std::tuple<int32_t, int32_t, int32_t>> places;
        for (const BackwardTask& task : tasks) places.insert({task.sequence, task.head_k, task.key});
        EXPECT_EQ(places.size(), tasks.size()) << p.text();
        EXPECT_EQ(tasks.size(),
                  static_cast<size_t>(seen_key_tiles(p.sequences().of(0).seen).size() * p.heads_k * p.batch));
    }
}

TEST(BackwardSchedule, VisitsWhatIsSeen) {
    for (const Problem& p : problems()) {
        const BackwardSequence sequence = p.sequences().of(0);
        for (const int32_t keys : {kBackwardKeys, kWideKeys})
            for (int32_t key = 0; key < p.len_k; key += keys) {
                const Range tiles = query_tiles_of(sequence.band, key, keys, p.len_q);
                const Range unmasked = unmasked_tiles_of(sequence.band, key, keys, tiles);
                for (int32_t tile = 0; tile * kBackwardQueries < p.len_q; ++tile) {
                    const Seen seen = seen_of(sequence.band, p.len_q, tile, key, keys);
                    ASSERT_EQ(tiles.contains(tile), seen.some) << p.text() << ", key " << key << ", tile " << tile;
                    ASSERT_EQ(unmasked.contains(tile), seen.some && seen.all)
                        << p.text() << ", key " << key << ", tile " << tile;
                }
            }
    }
}

TEST(BackwardSchedule, NoTaskWaitsForALaterOne) {
    for (const Problem& p : problems()) {
        // Of a sequence, a head and a query tile: how many tasks have come so far. Each must be the next.
        std::map<std::tuple<int32_t, int32_t, int32_t>, int32_t> arrived;
        for (const BackwardTask& task : tasks_of(p))
            for (int32_t tile = task.query_tiles.begin; tile < task.query_tiles.end; ++tile)
                ASSERT_EQ(rank_of(task, tile), (arrived[{task.sequence, task.head_k, tile}])++)
                    << p.text() << ", key " << task.key << ", tile " << tile;
        const BackwardSequence sequence = p.sequences().of(0);
        for (int32_t tile = 0; tile * kBackwardQueries < p.len_q; ++tile)
            ASSERT_EQ(sees_keys(sequence.band, tile, p.len_q), arrived.count({0, 0, tile}) > 0) << p.text();
    }
}

TEST(BackwardSchedule, AWalkVisitsEachTileOfEachHeadOnce) {
    for (const bool ascends : {false, true}) {
        constexpr Range kTiles{3, 8};
        constexpr int32_t kHeads = 3;
        std::set<std::pair<int32_t, int32_t>> visited;
        BackwardStep step = BackwardStep::first(kTiles, ascends);
        bool more = true;
        for (int n = 0; more; ++n) {
            ASSERT_LT(n, kTiles.size() * kHeads);
            EXPECT_TRUE(kTiles.contains(step.tile));
            EXPECT_EQ(step.head, n / kTiles.size());
            visited.insert({step.head, step.tile});
            more = step.advance(kTiles, ascends, kHeads);
        }
        EXPECT_EQ(visited.size(), static_cast<size_t>(kTiles.size() * kHeads));
    }
}

TEST(BackwardSchedule, SlotsOfVarlenSequencesDoNotOverlap) {
    std::mt19937 random(3);
    for (int n = 0; n < 100; ++n) {
        const auto batch = static_cast<int32_t>(1 + random() % 20);
        std::vector<int32_t> cu{0};
        for (int32_t i = 0; i < batch; ++i) cu.push_back(cu.back() + static_cast<int32_t>(random() % 200));
        const Lengths lengths{cu.back(), cu.data(), nullptr};
        for (const int32_t rows : {kBackwardQueries, kBackwardKeys}) {
            const Slots slots{rows};
            const int32_t all = slots.count(true, batch, cu.back());
            for (int32_t i = 0; i < batch; ++i) {
                const int32_t begin = slots.of(lengths, i);
                const int32_t end = begin + slots.tiles(cu[static_cast<size_t>(i) + 1] - cu[static_cast<size_t>(i)]);
                EXPECT_LE(end, i + 1 < batch ? slots.of(lengths, i + 1) : all);
                for (int32_t slot = begin; slot < end; ++slot) EXPECT_EQ(slots.sequence_at(lengths, batch, slot), i);
            }
        }
    }
}

}  // namespace
}  // namespace foveal::sm90
