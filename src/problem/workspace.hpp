// The workspace that a call is given: the checks that every operation makes of it.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"

namespace foveal {

// Throws Error(INVALID_ARGUMENT): pointer and size are both there or neither is; aligned; of a size that there can be.
void check_workspace(const void* workspace, uint64_t workspace_bytes);

// Its bytes as a tensor, to be held against the others.
foveal_tensor bytes_of_workspace(void* workspace, uint64_t workspace_bytes);

}  // namespace foveal
