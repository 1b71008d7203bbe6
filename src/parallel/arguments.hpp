// The caller's arguments turned into a problem of all ranks.
#pragma once

#include "parallel/plan.hpp"

namespace foveal::parallel {

// Throws Error(INVALID_ARGUMENT or UNSUPPORTED), naming the argument.
Problem problem_of(const foveal_parallel_args& args);

}  // namespace foveal::parallel
