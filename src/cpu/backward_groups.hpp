// The head groups of a backward problem, with what is known of each query before any score is: its log-sum-exp and D.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/backward_tile.hpp"
#include "cpu/sequences.hpp"
#include "cpu/thread_workspace.hpp"
#include "problem/backward.hpp"

namespace foveal::cpu {

class BackwardGroups {
   public:
    // Groups of `heads` neighbouring query heads each, which share a K/V head. Reads the log-sum-exps, out and dout.
    BackwardGroups(const BackwardProblem& problem, const BackwardPointers& pointers,
                   const std::vector<Sequence>& sequences, int64_t heads, int threads);

    // Sequence by sequence.
    int64_t size() const { return static_cast<int64_t>(groups_.size()); }
    int64_t per_sequence() const { return per_sequence_; }
    const BackwardGroup& at(int64_t sequence, int64_t index) const { return of(sequence * per_sequence_ + index); }
    const BackwardGroup& of(int64_t group) const { return groups_[static_cast<size_t>(group)]; }

   private:
    int64_t per_sequence_;
    std::vector<BackwardGroup> groups_;
    ThreadWorkspace rows_;  // shift and delta of all groups
};

// Subtiles of so many queries.
int64_t subtiles_of(int64_t queries);

}  // namespace foveal::cpu
