#include "forward.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::bf16, 0, ForwardVariant::plain>>();
template const void* forward_kernel<ForwardInstance<DType::bf16, 1, ForwardVariant::plain>>();
template const void* forward_kernel<ForwardInstance<DType::bf16, 1, ForwardVariant::lse>>();

}  // namespace foveal::sm90
