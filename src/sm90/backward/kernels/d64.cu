#include "sm90/backward/finish.cuh"
#include "sm90/backward/kernel.cuh"
#include "sm90/backward/prepare.cuh"

namespace foveal::sm90 {

template const void* prepare_kernel<BackwardInstance<DType::bf16, kBackwardD64>>();
template const void* backward_kernel<BackwardInstance<DType::bf16, kBackwardD64>>();
template const void* finish_kernel<BackwardInstance<DType::bf16, kBackwardD64>>();

template const void* prepare_kernel<BackwardInstance<DType::f16, kBackwardD64>>();
template const void* backward_kernel<BackwardInstance<DType::f16, kBackwardD64>>();
template const void* finish_kernel<BackwardInstance<DType::f16, kBackwardD64>>();

}  // namespace foveal::sm90
