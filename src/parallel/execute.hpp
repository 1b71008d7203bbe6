// Runs a plan: exchanges, kernels and merges on the caller's streams.
#pragma once

#include "parallel/communicator.hpp"
#include "parallel/plan.hpp"

namespace foveal::parallel {

// Throws Error. Nothing is sent before the arguments have been checked.
void execute(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args, void* stream);

}  // namespace foveal::parallel
