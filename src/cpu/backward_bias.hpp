// The gradient of the bias on the CPU.
#pragma once

#include <vector>

#include "cpu/sequences.hpp"
#include "problem/backward.hpp"

namespace foveal::cpu {

// Writes all of dbias. Each task owns some of its elements and sums over all scores that share them, in a fixed order.
void differentiate_bias(const BackwardProblem& problem, const BackwardPointers& pointers,
                        const std::vector<Sequence>& sequences, int threads);

}  // namespace foveal::cpu
