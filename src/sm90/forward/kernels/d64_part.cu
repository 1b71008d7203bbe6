#include "sm90/forward/kernel.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::bf16, kTileD64, ForwardVariant::part>>();
template const void* forward_kernel<ForwardInstance<DType::f16, kTileD64, ForwardVariant::part>>();

}  // namespace foveal::sm90
