#include "sm90/forward/kernel.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::bf16, kTileD64Options, ForwardVariant::dropout, true>>();
template const void* forward_kernel<ForwardInstance<DType::f16, kTileD64Options, ForwardVariant::dropout, true>>();

}  // namespace foveal::sm90
