#include "forward.cuh"

namespace foveal::sm90 {

template const void* forward_kernel<ForwardInstance<DType::f16, 1, false>>();
template const void* forward_kernel<ForwardInstance<DType::f16, 2, true>>();

}  // namespace foveal::sm90
