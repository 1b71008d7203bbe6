// What the sm90 forward over e4m3 can do exactly.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// Throws Error(UNSUPPORTED), naming the argument, the value and what is supported. Of problems whose q is in e4m3.
void check_e4m3_supported(const ForwardProblem& problem);

// The head dimension of the kernel for the problem.
int32_t e4m3_head_dim(const ForwardProblem& problem);

}  // namespace foveal::sm90
