// The useful work of a forward problem, from which bounds and rates follow: the only place that counts it. Plans, the
// tool and the benchmarks all ask here.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "problem/forward.hpp"

namespace foveal {

struct SequenceLengths {
    int64_t q, k;
    std::optional<int64_t> query_offset = {};  // absent: what the problem's alignment says
};

struct UsefulWork {
    double visible_pairs = 0;  // (query, key) pairs of one head that window and chunks leave, over all sequences
    double flops = 0;  // a multiply and an add for each channel of each visible pair of each head, in both products
    double bytes = 0;  // that cross the memory bus at least: each input row read once, each output row written once
};

// lengths: of each sequence, the rows that take part; problem.batch of them.
UsefulWork useful_work(const ForwardProblem& problem, std::span<const SequenceLengths> lengths);

// Of a dense problem without used lengths, all of whose sequences are alike.
UsefulWork useful_work_of_dense(const ForwardProblem& problem);

}  // namespace foveal
