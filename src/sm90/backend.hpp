// The sm90 backend's row in the list of backends.
#pragma once

#include "backend/backend.hpp"

namespace foveal::sm90 {

extern const Backend kBackend;

}  // namespace foveal::sm90
