// The backends that there are, and which of them a call goes to.
#pragma once

#include <string>

#include "backend/backend.hpp"
#include "foveal/foveal.h"

namespace foveal {

bool backend_built(foveal_backend id);

// AUTO becomes cpu or sm90: the environment variable FOVEAL_BACKEND if set, else where the operation's first input
// lies. Throws Error(NO_DEVICE) if this build has no kernels for it.
const Backend& resolve_backend(foveal_backend asked, const void* first_input);

// For the messages of a call: " (FOVEAL_BACKEND ...)" where that variable chose the backend, else "".
std::string environment_note(foveal_backend asked);

// The one to plan for and to ask what it supports, built or not. Throws Error(INVALID_ARGUMENT) for AUTO.
const Backend& backend_of(foveal_backend id);

// Throws Error(NO_DEVICE) if this build has no kernels for it.
const Backend& require_built(const Backend& backend);

}  // namespace foveal
