// The instantiations of the forward kernel for keys in e4m3, each defined in a .cu of its own dtype and head dimension.
#pragma once

namespace foveal::sm90 {

// Address of dequantising_forward<Instance>, as the CUDA runtime's launch functions take it.
template <class Instance>
const void* dequantising_forward_kernel();

}  // namespace foveal::sm90
