// The CPU backend's row in the list of backends.
#pragma once

#include "backend/backend.hpp"

namespace foveal::cpu {

extern const Backend kBackend;

}  // namespace foveal::cpu
