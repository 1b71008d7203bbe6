// The gradients of q, k, v and of ALiBi's slopes on the CPU.
#pragma once

#include <vector>

#include "cpu/backward_groups.hpp"
#include "cpu/sequences.hpp"
#include "problem/backward.hpp"

namespace foveal::cpu {

// Each of a group's keys' parts is a task, which computes their dk and dv; parts add to dq one after the other.
void differentiate_parts(const BackwardProblem& problem, const BackwardPointers& pointers,
                         const std::vector<Sequence>& sequences, const BackwardGroups& groups, int threads);

}  // namespace foveal::cpu
