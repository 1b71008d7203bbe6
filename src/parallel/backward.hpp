// Runs a plan of gradients.
#pragma once

#include "parallel/communicator.hpp"
#include "parallel/plan.hpp"

namespace foveal::parallel {

// As execute(). gradients: this rank's; what they are of is args.forward.
void differentiate(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
                   const foveal_backward_args& gradients, void* stream);

}  // namespace foveal::parallel
