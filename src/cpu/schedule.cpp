#include "cpu/schedule.hpp"

#include <algorithm>

#include "cpu/part.hpp"
#include "cpu/tile.hpp"

namespace foveal::cpu {
namespace {

// Queries of a tile at most, so that its transposed queries and outputs stay in half an L2 cache of 1 MiB ...
constexpr int64_t kTileBytes = 512 << 10;
// ... and at most as many as it takes to hide the packing of K and V.
constexpr int64_t kMaxTileQueries = 768;
// Tiles for each thread that the work is cut into, if the sequences allow it: the last ones to finish differ by one.
constexpr int64_t kTilesPerThread = 4;

// Rows of a sequence up to which its keys are cut into parts: with more, there are tiles for all threads.
constexpr int32_t kMostSplitRows = 16;
// A part has at least so many keys, and a sequence at most so many parts.
constexpr int32_t kLeastPartKeys = 512;
constexpr int32_t kMostParts = 64;
// Multiply-adds in the time that an element of K or V takes to come from memory.
constexpr double kMultiplyAddsAnElement = 8;

int32_t round_up(int32_t x, int32_t multiple) { return (x + multiple - 1) / multiple * multiple; }

Split split_of(const ForwardProblem& problem, const Sequence& sequence) {
    Split split{};
    if (sequence.len_q == 0 || sequence.len_q > kMostSplitRows) return split;
    const Band band = sequence.band(problem);
    split.seen = seen_keys(band, sequence.len_q);
    const int32_t keys = split.seen.size();
    split.part_keys = std::max(kLeastPartKeys, round_up((keys + kMostParts - 1) / kMostParts, kBlockKeys));
    split.first_part = split.seen.begin / split.part_keys;
    // Without a key there is one part too, an empty one.
    const int32_t end_part = keys == 0 ? split.first_part + 1 : (split.seen.end - 1) / split.part_keys + 1;
    const int64_t queries = sequence.len_q * problem.heads_per_kv();
    split.few_queries = queries <= most_few_queries();
    if (split.few_queries || end_part - split.first_part > 1) split.parts = end_part - split.first_part;
    split.floats = split.parts * part_floats(queries, problem.head_dim_v);
    return split;
}

double multiply_adds_of(const ForwardProblem& problem, const Sequence& sequence, int64_t begin, int64_t end,
                        Range keys) {
    const Band band = sequence.band(problem);
    const int64_t step = subtile_queries();
    double pairs = 0;
    for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(first + step, end) - 1;
        const Range seen{
            std::max(visible_keys(band, static_cast<int32_t>(first / problem.heads_per_kv())).begin, keys.begin),
            std::min(visible_keys(band, static_cast<int32_t>(last / problem.heads_per_kv())).end, keys.end)};
        // One key's worth for what a query costs without any.
        pairs += static_cast<double>(last + 1 - first) * (seen.size() + 1.0);
    }
    return pairs * static_cast<double>(problem.head_dim + problem.head_dim_v);
}

// Smaller tiles than the cache allows if the threads would otherwise lack work. No result depends on it.
int64_t tile_queries_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences, int threads) {
    const int64_t query_bytes = (problem.head_dim + problem.head_dim_v) * static_cast<int64_t>(sizeof(float));
    int64_t subtiles = 0;
    for (const Sequence& s : sequences) {
        subtiles += (s.len_q * problem.heads_per_kv() + subtile_queries() - 1) / subtile_queries() * problem.heads_k;
    }
    const int64_t fit_cache = std::min(kTileBytes / query_bytes, kMaxTileQueries) / subtile_queries();
    const int64_t fit_threads = subtiles / (threads * kTilesPerThread);
    return std::max<int64_t>(std::min(fit_cache, fit_threads), 1) * subtile_queries();
}

// The tasks of one sequence.
void add_tasks(const ForwardProblem& problem, const std::vector<Sequence>& sequences, int64_t index,
               Schedule& schedule) {
    const Sequence& sequence = sequences[static_cast<size_t>(index)];
    const Split& split = schedule.splits[static_cast<size_t>(index)];
    const int64_t queries = sequence.len_q * problem.heads_per_kv();
    const int64_t step = split.few_queries ? queries : schedule.tile_queries;
    for (int32_t part = 0; part < std::max(split.parts, 1); ++part) {
        const Range keys = split.parts > 0 ? split.keys_of(part) : Range{0, sequence.len_k};
        const double read = static_cast<double>(keys.size() * (problem.head_dim + problem.head_dim_v));
        for (int64_t begin = 0; begin < queries; begin += step) {
            const int64_t end = std::min(begin + step, queries);
            const double multiply_adds = multiply_adds_of(problem, sequence, begin, end, keys);
            const double cost =
                split.parts > 0 ? std::max(multiply_adds, kMultiplyAddsAnElement * read) : multiply_adds;
            schedule.tasks.push_back({index, begin, end, part, cost});
            schedule.cost += cost * static_cast<double>(problem.heads_k);
            if (split.parts > 0) ++schedule.part_tasks[static_cast<size_t>(index)];
        }
    }
}

}  // namespace

Range Split::keys_of(int32_t part) const {
    const int32_t begin = (first_part + part) * part_keys;
    return {std::max(begin, seen.begin), std::min(begin + part_keys, seen.end)};
}

double most_cost_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences) {
    double pairs = 0, read = 0;
    for (const Sequence& s : sequences) {
        pairs += static_cast<double>(s.len_q) * (s.len_k + 1.0);
        read += s.len_k;
    }
    const double products = pairs * static_cast<double>(problem.heads_q);
    const double elements = read * static_cast<double>(problem.heads_k);
    return (products + kMultiplyAddsAnElement * elements) * static_cast<double>(problem.head_dim + problem.head_dim_v);
}

Schedule schedule_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences, int threads) {
    Schedule schedule;
    schedule.tile_queries = tile_queries_of(problem, sequences, threads);
    schedule.part_tasks.resize(sequences.size());
    schedule.splits.reserve(sequences.size());
    schedule.tasks.reserve(sequences.size());
    for (size_t i = 0; i < sequences.size(); ++i) {
        Split split = split_of(problem, sequences[i]);
        split.first_float = schedule.part_floats;
        schedule.part_floats += split.floats * problem.heads_k;
        schedule.splits.push_back(split);
        add_tasks(problem, sequences, static_cast<int64_t>(i), schedule);
    }
    // The last tile to start is a short one.
    if (schedule.tasks.size() > 1)
        std::stable_sort(schedule.tasks.begin(), schedule.tasks.end(),
                         [](const Task& a, const Task& b) { return a.cost > b.cost; });
    return schedule;
}

}  // namespace foveal::cpu
