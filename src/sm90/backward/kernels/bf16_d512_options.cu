#include "sm90/backward/widest.cuh"

namespace foveal::sm90 {

using Instance = BackwardInstance<DType::bf16, kBackwardD512, BackwardVariant::options>;
template const void* widest_kernel<Instance, WidestGradient::dk>();
template const void* widest_kernel<Instance, WidestGradient::dv>();
template const void* widest_kernel<Instance, WidestGradient::dq>();

}  // namespace foveal::sm90
