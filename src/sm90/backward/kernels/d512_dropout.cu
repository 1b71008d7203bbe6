#include "sm90/backward/widest.cuh"

namespace foveal::sm90 {

using Bf16 = BackwardInstance<DType::bf16, kBackwardD512, BackwardVariant::dropout_options>;
using F16 = BackwardInstance<DType::f16, kBackwardD512, BackwardVariant::dropout_options>;

template const void* widest_kernel<Bf16, WidestGradient::dk>();
template const void* widest_kernel<Bf16, WidestGradient::dv>();
template const void* widest_kernel<Bf16, WidestGradient::dq>();

template const void* widest_kernel<F16, WidestGradient::dk>();
template const void* widest_kernel<F16, WidestGradient::dv>();
template const void* widest_kernel<F16, WidestGradient::dq>();

}  // namespace foveal::sm90
