#include "sm90/forward/kernel.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::bf16, kTileD64, ForwardVariant::plain>>();
template const void* forward_kernel<ForwardInstance<DType::bf16, kTileD64, ForwardVariant::lse>>();
template const void* forward_kernel<ForwardInstance<DType::bf16, kTileD64Long, ForwardVariant::plain>>();

template const void* forward_kernel<ForwardInstance<DType::f16, kTileD64, ForwardVariant::plain>>();
template const void* forward_kernel<ForwardInstance<DType::f16, kTileD64, ForwardVariant::lse>>();
template const void* forward_kernel<ForwardInstance<DType::f16, kTileD64Long, ForwardVariant::plain>>();

}  // namespace foveal::sm90
