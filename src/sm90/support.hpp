// What the sm90 backend can do exactly.
#pragma once

#include "../problem.hpp"

namespace foveal::sm90 {

// Throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_supported(const Problem& problem);

// Throws Error(UNSUPPORTED) where a data pointer is not what the copy engine can address.
void check_pointers(const Pointers& pointers);

// The place in kForwardTiles of the problem's tile.
int32_t tile_index_of(const Problem& problem);

}  // namespace foveal::sm90
