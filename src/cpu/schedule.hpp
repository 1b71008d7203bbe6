// How the work of a forward pass is cut into tasks that threads take one after the other. Which way a sequence is
// computed, and where its keys are cut, follows from the sequence and the problem alone: results do not depend on the
// rest of the batch, nor on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/sequences.hpp"
#include "problem/forward.hpp"
#include "problem/mask.hpp"

namespace foveal::cpu {

// How the keys that a sequence's queries see are cut.
struct Split {
    Range seen;         // by any query
    int32_t part_keys;  // a multiple of kBlockKeys; part n holds keys from (n + first_part) * part_keys on
    int32_t first_part;
    int32_t parts;        // 0: tiles with all their keys, which write the result themselves
    bool few_queries;     // attend_few_queries() computes a part, else tiles
    int64_t first_float;  // in the memory of all parts: of K/V head 0
    int64_t floats;       // of all parts of a K/V head

    Range keys_of(int32_t part) const;
};

// A run of one sequence's queries, with all their keys or those of a part; it stands for as many tasks as there are
// K/V heads.
struct Task {
    int64_t sequence;
    int64_t begin;
    int64_t end;
    int32_t part;
    double cost;  // in multiply-adds, of one K/V head
};

struct Schedule {
    std::vector<Split> splits;        // [sequences]
    std::vector<Task> tasks;          // the longest first
    std::vector<int32_t> part_tasks;  // [sequences]: tasks of a K/V head that fill its parts
    int64_t tile_queries = 0;         // of a tile at most
    int64_t part_floats = 0;          // memory of all parts
    double cost = 0;                  // of all tasks and K/V heads
};

// No schedule's cost is more.
double most_cost_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences);

Schedule schedule_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences, int threads);

}  // namespace foveal::cpu
