// Launches of the forward kernel.
#pragma once

#include <cuda.h>

#include "problem/forward.hpp"
#include "sm90/forward/plan.hpp"

namespace foveal::sm90 {

// Enqueues `function`, an instance of the forward kernel for kernel.tile(), with what the plan has prepared and these
// pointers. The current device is the stream's.
void enqueue_forward(CUfunction function, const ForwardProblem& problem, const PreparedForward& kernel,
                     const ForwardPointers& pointers, void* stream);

}  // namespace foveal::sm90
