#include "forward.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::f16, 4, ForwardVariant::plain>>();
template const void* forward_kernel<ForwardInstance<DType::f16, 4, ForwardVariant::lse>>();

}  // namespace foveal::sm90
