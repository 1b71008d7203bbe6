// The sequences of a forward problem: where their rows begin and how many take part. Nobody else reads lengths, offsets
// or tables of pages unchecked.
#pragma once

#include <cstdint>
#include <vector>

#include "problem/forward.hpp"
#include "problem/mask.hpp"

namespace foveal::cpu {

struct Sequence {
    int64_t first_q;
    int64_t first_k;
    int32_t len_q;
    int32_t len_k;
    int32_t off;            // where query 0 stands among the keys (contract 1.3)
    const uint32_t* pages;  // that hold its keys; null: they are not in pages

    Band band(const ForwardProblem& problem) const { return band_at(problem.window(), off, len_k); }
};

// All of the batch. Throws Error(INVALID_ARGUMENT) naming the entry of cu_seqlens, seqused, query_offset or a table of
// pages that is out of range. Of a table, only entries that hold keys which some query sees are looked at.
std::vector<Sequence> sequences_of(const ForwardProblem& problem, const ForwardPointers& pointers);

}  // namespace foveal::cpu
