// The instantiations of the forward kernel, each defined in a .cu of its own dtype and head dimension.
#pragma once

#include "sm90/forward/tiles.hpp"

namespace foveal::sm90 {

// Address of forward<Instance>, as the CUDA runtime's launch functions take it.
template <class Instance>
const void* forward_kernel();

}  // namespace foveal::sm90
