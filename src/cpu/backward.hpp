// The backward pass on the CPU.
#pragma once

#include "problem/backward.hpp"

namespace foveal::cpu {

// The gradients that a validated problem asks for; returns when they are there.
void backward(const BackwardProblem& problem, const BackwardPointers& pointers);

}  // namespace foveal::cpu
