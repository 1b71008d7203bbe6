#include "sm90/backward/finish.cuh"
#include "sm90/backward/kernel.cuh"
#include "sm90/backward/prepare.cuh"

namespace foveal::sm90 {

using Instance = BackwardInstance<DType::bf16, kBackwardD64>;
template const void* prepare_kernel<Instance>();
template const void* backward_kernel<Instance>();
template const void* finish_kernel<Instance>();

}  // namespace foveal::sm90
