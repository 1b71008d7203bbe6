// Launches of the decode kernel.
#pragma once

#include <cuda.h>

#include "problem/forward.hpp"
#include "sm90/decode/plan.hpp"

namespace foveal::sm90 {

// Enqueues `function`, an instance of the decode kernel for kernel.tile(), with what the plan has prepared and these
// pointers. The current device is the stream's.
void enqueue_decode(CUfunction function, const ForwardProblem& problem, const PreparedDecode& kernel,
                    const ForwardPointers& pointers, void* stream);

}  // namespace foveal::sm90
