#include "sm90/forward/dequantising_kernel.cuh"

namespace foveal::sm90 {

template const void*
dequantising_forward_kernel<ForwardInstance<DType::bf16, kTileD256, ForwardVariant::options_lse, true>>();

template const void*
dequantising_forward_kernel<ForwardInstance<DType::f16, kTileD256, ForwardVariant::options_lse, true>>();

}  // namespace foveal::sm90
