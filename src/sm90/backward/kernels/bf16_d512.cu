#include "sm90/backward/finish.cuh"
#include "sm90/backward/prepare.cuh"
#include "sm90/backward/widest.cuh"

namespace foveal::sm90 {

using Instance = BackwardInstance<DType::bf16, kBackwardD512>;
template const void* prepare_kernel<Instance>();
template const void* widest_kernel<Instance, WidestGradient::dk>();
template const void* widest_kernel<Instance, WidestGradient::dv>();
template const void* widest_kernel<Instance, WidestGradient::dq>();
template const void* finish_kernel<Instance>();

}  // namespace foveal::sm90
