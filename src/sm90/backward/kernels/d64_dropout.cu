#include "sm90/backward/kernel.cuh"

namespace foveal::sm90 {

template const void* backward_kernel<BackwardInstance<DType::bf16, kBackwardD64, BackwardVariant::dropout_options>>();
template const void* backward_kernel<BackwardInstance<DType::f16, kBackwardD64, BackwardVariant::dropout_options>>();

}  // namespace foveal::sm90
