// What a backward task is, and the order in which tasks are taken: closed forms, evaluated by the kernel that lists
// them (prepare.cuh). Host and device share them.
//
// A task is 128 keys of one KV head of one sequence. It walks, for each query head of the group in turn, the query
// tiles (64 rows) that see some of its keys, and adds what it finds to their dQ.
//
// The sums of a query tile are taken in a fixed order: the task whose `rank` there is r adds after r others. So a task
// waits for others, and these must be earlier in the list, which is dealt out front to back. Two orders are used:
//   - keys descend, queries ascend: of tasks that start at once under a causal mask each reaches a query tile two steps
//     after the one before it in the order of the sums, and nobody waits; the shortest tasks come first;
//   - keys ascend, queries descend: good for tasks that start one after the other, as CTAs end others; the longest
//   tasks
//     come first.
// Heads are taken in groups of about as many tasks as a GPU has SMs, and the groups take the two orders in turn: then
// the second starts as the first ends, and who had a short task gets a long one.
//
// None of this depends on the batch, nor on the number of SMs: nor does any bit of the result (contract 1.7).
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "problem/lengths.hpp"
#include "problem/mask.hpp"
#include "sm90/backward/sequences.hpp"
#include "sm90/backward/tiles.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// A lane copies each word.
struct BackwardTask {
    int32_t sequence;
    int32_t batch;  // coordinate in the tensor maps: the sequence, or 0 if varlen
    int32_t head_k;
    SequenceRows q, k;  // the sequence's
    int32_t key;        // the task's first, of the sequence
    Range seen;         // keys of the sequence that some query sees
    Range seeing;       // queries of the sequence that see some key
    Range query_tiles;  // to be visited; empty: there are no more tasks
    Range unmasked;     // of them, those whose rows all see all keys of the task
    int32_t slot;       // of the sequence's first query tile (sequences.hpp)
    Band band;
    int32_t ascends;  // 1: queries ascend, 0: they descend
};
inline constexpr int32_t kTaskWords = sizeof(BackwardTask) / 4;
static_assert(kTaskWords <= kWarpThreads);

// Query tiles of which a row sees one of `keys` keys from `key` on, of len_q rows.
FOVEAL_HOST_DEVICE Range query_tiles_of(Band band, int32_t key, int32_t keys, int32_t len_q) {
    const Range rows = seeing_queries(band, {key, key + keys}, len_q);
    if (rows.begin >= rows.end) return {0, 0};
    return {rows.begin / kBackwardQueries, (rows.end + kBackwardQueries - 1) / kBackwardQueries};
}

// Of these the ones whose 64 rows, past the sequence's end too, all see all of the keys.
FOVEAL_HOST_DEVICE Range unmasked_tiles_of(Band band, int32_t key, int32_t keys, Range visited) {
    const int32_t last_key = key + keys - 1;
    if (last_key >= band.len_k) return {0, 0};
    Range rows{last_key - band.high, key - band.low + 1};
    if (band.chunk > 0) {
        const int32_t chunk = key / band.chunk;
        if (last_key / band.chunk != chunk) return {0, 0};
        rows.begin = max_i32(rows.begin, chunk * band.chunk - band.off);
        rows.end = min_i32(rows.end, (chunk + 1) * band.chunk - band.off);
    }
    static_assert(kBackwardQueries == 64);
    // The shifts round towards minus infinity.
    return {max_i32((rows.begin + kBackwardQueries - 1) >> 6, visited.begin), min_i32(rows.end >> 6, visited.end)};
}

// Of `keys` keys from `key` on, of one sequence and head of K.
FOVEAL_HOST_DEVICE BackwardTask task_of(const BackwardSequences& sequences, const BackwardSequence& sequence,
                                        int32_t number, int32_t head_k, int32_t key, int32_t keys, bool ascends) {
    BackwardTask task;
    task.sequence = number;
    task.batch = sequences.is_varlen() ? 0 : number;
    task.head_k = head_k;
    task.q = sequence.q;
    task.k = sequence.k;
    task.key = key;
    task.seen = sequence.seen;
    task.seeing = sequence.seeing;
    task.query_tiles = query_tiles_of(sequence.band, key, keys, sequence.q.length);
    task.unmasked = unmasked_tiles_of(sequence.band, key, keys, task.query_tiles);
    task.slot = sequence.slot;
    task.band = sequence.band;
    task.ascends = ascends ? 1 : 0;
    return task;
}

// Among the tasks that visit a query tile, the place of this one. They are those of all key tiles between the first
// row's first key and the last row's last one.
FOVEAL_HOST_DEVICE int32_t rank_of(const BackwardTask& task, int32_t query_tile) {
    const int32_t first_row = query_tile * kBackwardQueries,
                  last_row = min_i32(first_row + kBackwardQueries, task.q.length) - 1;
    const int32_t key_tile = task.key / kBackwardKeys;
    return task.ascends != 0 ? (visible_keys(task.band, last_row).end - 1) / kBackwardKeys - key_tile
                             : key_tile - visible_keys(task.band, first_row).begin / kBackwardKeys;
}

// Does a row of the tile see a key?
FOVEAL_HOST_DEVICE bool sees_keys(Band band, int32_t query_tile, int32_t len_q) {
    const int32_t first = query_tile * kBackwardQueries, last = min_i32(first + kBackwardQueries, len_q) - 1;
    return visible_keys(band, first).begin < visible_keys(band, last).end;
}

// The key tiles of a sequence that some query sees, of len_q queries.
FOVEAL_HOST_DEVICE Range seen_key_tiles(Range seen) {
    if (seen.begin >= seen.end) return {0, 0};
    return {seen.begin / kBackwardKeys, (seen.end + kBackwardKeys - 1) / kBackwardKeys};
}

// A step's place in the walk of a task.
struct BackwardStep {
    int32_t head = 0;  // of the group
    int32_t tile = 0;
    int32_t left = 0;  // tiles of this head, this one included

    FOVEAL_HOST_DEVICE static BackwardStep first(Range tiles, bool ascends) {
        return {0, ascends ? tiles.begin : tiles.end - 1, tiles.size()};
    }
    // false: the task has no more.
    FOVEAL_HOST_DEVICE bool advance(Range tiles, bool ascends, int32_t heads) {
        tile += ascends ? 1 : -1;
        if (--left > 0) return true;
        const int32_t next_head = head + 1;
        *this = first(tiles, ascends);
        head = next_head;
        return head < heads;
    }
};

// The order of a sequence's tasks.
struct TaskOrder {
    int32_t key_tiles;    // that some query sees
    int32_t heads;        // of K
    int32_t group_heads;  // >= 1; the last group has the heads that are left

    FOVEAL_HOST_DEVICE int32_t tasks() const { return key_tiles * heads; }
};

inline constexpr int32_t kGroupTasks = 128;  // at most, unless one head has more: about as many as there are SMs

// alike: all sequences have the same lengths. Then their groups are taken together, and a sequence has one of each
// order.
FOVEAL_HOST_DEVICE TaskOrder task_order(Range key_tiles, int32_t heads_k, bool alike) {
    const int32_t fitting = kGroupTasks / max_i32(key_tiles.size(), 1), most = alike ? (heads_k + 1) / 2 : heads_k;
    return {key_tiles.size(), heads_k, max_i32(1, min_i32(fitting, most))};
}

struct TaskPlace {
    int32_t first_head, heads;  // the group's
    int32_t step;               // in the group; heads change fastest
    int32_t key_tile;           // counted from the first that is seen
    int32_t head_k;
    bool ascends;  // the queries
};

// Task `t` of [0, order.tasks()). Every place occurs once.
FOVEAL_HOST_DEVICE TaskPlace task_place(const TaskOrder& order, int32_t t) {
    const int32_t group_tasks = order.group_heads * order.key_tiles;
    const int32_t group = t / group_tasks, in_group = t - group * group_tasks;
    TaskPlace place;
    place.first_head = group * order.group_heads;
    place.heads = min_i32(order.group_heads, order.heads - place.first_head);
    place.step = in_group / place.heads;
    place.head_k = place.first_head + in_group % place.heads;
    place.ascends = (group & 1) == 0;
    place.key_tile = place.ascends ? order.key_tiles - 1 - place.step : place.step;
    return place;
}

// Where in the list the task is, of sequence `sequence` of `batch` that are all alike: the same groups of so many
// sequences that they have kGroupTasks tasks are one group.
FOVEAL_HOST_DEVICE int32_t place_among_alike(const TaskOrder& order, const TaskPlace& place, int32_t sequence,
                                             int32_t batch) {
    const int32_t together = max_i32(1, kGroupTasks / (order.group_heads * order.key_tiles));
    const int32_t first = sequence / together * together, sequences = min_i32(together, batch - first);
    return first * order.tasks() + place.first_head * order.key_tiles * sequences +
           (place.step * sequences + sequence - first) * place.heads + place.head_k - place.first_head;
}

}  // namespace foveal::sm90
