// The head groups of a backward problem, with what is known of each query before any score is: its log-sum-exp and D.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/backward_tile.hpp"
#include "cpu/sequences.hpp"
#include "cpu/thread_workspace.hpp"
#include "problem/backward.hpp"

namespace foveal::cpu {

// Subtiles of so many queries.
int64_t subtiles_of(int64_t queries);

class BackwardGroups {
   public:
    // Groups of `heads` neighbouring query heads each, which share a K/V head. Reads the log-sum-exps, out and dout.
    // All arguments stay where they are.
    BackwardGroups(const BackwardProblem& problem, const BackwardPointers& pointers,
                   const std::vector<Sequence>& sequences, int64_t heads, int threads);

    int64_t per_sequence() const { return problem_.forward.heads_q / heads_; }
    int64_t size() const { return static_cast<int64_t>(sequences_.size()) * per_sequence(); }
    // Query heads [index * heads, (index + 1) * heads) of a sequence; nothing is asked of it yet.
    BackwardGroup at(int64_t sequence, int64_t index) const;

   private:
    void prepare(int threads) const;

    const BackwardProblem& problem_;
    const BackwardPointers& pointers_;
    const std::vector<Sequence>& sequences_;
    const int64_t heads_;
    std::vector<int64_t> first_row_;  // [sequences], of a sequence's first group
    ThreadWorkspace rows_;            // shift, then delta, of one group behind the other
};

}  // namespace foveal::cpu
