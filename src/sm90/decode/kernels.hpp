// The instantiations of the decode kernel, each defined in a .cu of its own dtype and head dimension.
#pragma once

#include "sm90/decode/tiles.hpp"

namespace foveal::sm90 {

// Address of decode<Instance>, as the CUDA runtime's launch functions take it.
template <class Instance>
const void* decode_kernel();

}  // namespace foveal::sm90
