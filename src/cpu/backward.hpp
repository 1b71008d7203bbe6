// The backward pass on the CPU.
#pragma once

#include "problem/backward.hpp"

namespace foveal::cpu {

// The gradients that a validated problem asks for; returns when they are there.
//
// Scores are computed anew, block by block. Memory beyond the caller's tensors: two floats a query and head, of the
// sequences and K/V heads that are being computed dq in f32, and for each thread a few hundred KiB (more with d and
// d_v) that it keeps for its next call. Uses thread_count() threads (cpu/thread_count.hpp) unless the problem is too
// small to share. Gradients have the same bits whatever their number, and those of a sequence's q, k and v whatever the
// rest of the batch; they may differ between SIMD targets.
//
// Throws as cpu::forward() does, and has written nothing if it throws Error.
void backward(const BackwardProblem& problem, const BackwardPointers& pointers);

}  // namespace foveal::cpu
