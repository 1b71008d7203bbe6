// The instantiations of the forward kernel over e4m3, each defined in a .cu of its own output type and head dimension.
#pragma once

#include "sm90/forward/e4m3/tiles.hpp"

namespace foveal::sm90 {

// Address of forward_e4m3<Instance>, as the CUDA runtime's launch functions take it.
template <class Instance>
const void* forward_e4m3_kernel();

}  // namespace foveal::sm90
