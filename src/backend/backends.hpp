// The backends: which one a call goes to, what each supports, and the three steps validate -> plan -> launch.
#pragma once

#include "backend/plan.hpp"
#include "foveal/foveal.h"
#include "problem/forward.hpp"
#include "problem/merge.hpp"

namespace foveal {

bool backend_built(foveal_backend backend);

// AUTO becomes cpu or sm90: the environment variable FOVEAL_BACKEND if set, else where the operation's first input
// lies.
foveal_backend resolve_backend(foveal_backend asked, const void* first_input);

// Throws Error(UNSUPPORTED), naming the argument, if the backend cannot do the problem exactly. No device is asked.
void check_supported(const Problem& problem, foveal_backend backend);

// Computes. `stream` must be null for the CPU.
void launch(const Plan& plan, const Pointers& pointers, void* stream);
void launch(const Merge& merge, foveal_backend backend, void* stream);

}  // namespace foveal
