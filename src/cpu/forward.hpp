// The forward pass on the CPU.
#pragma once

#include "problem/forward.hpp"

namespace foveal::cpu {

// out (and lse) = attention of a validated problem; returns when the result is there.
//
// Tiled online softmax with fp32 accumulation: memory beyond the caller's tensors is a few hundred KiB a thread (it
// grows with d and d_v only), kept by the thread for its next call, and so is, of sequences with few query rows, up to
// 64 times the output in f32 for the parts of their keys (cpu/part.hpp). Uses thread_count() threads
// (cpu/thread_count.hpp) unless the problem is too small to share. A query's result depends, to the bit, on its own
// sequence alone: not on the rest of the batch, nor on the number of threads; it may differ between SIMD targets.
//
// Throws Error(INVALID_ARGUMENT) if cu_seqlens does not ascend from 0 to total, if a used length leaves [0, length], or
// if FOVEAL_NUM_THREADS is malformed; std::bad_alloc. Nothing has been written if it throws Error.
void forward(const ForwardProblem& problem, const ForwardPointers& pointers);

}  // namespace foveal::cpu
