#include "sm90/backward/finish.cuh"
#include "sm90/backward/prepare.cuh"
#include "sm90/backward/widest.cuh"

namespace foveal::sm90 {

using Bf16 = BackwardInstance<DType::bf16, kBackwardD512>;
using F16 = BackwardInstance<DType::f16, kBackwardD512>;

template const void* prepare_kernel<Bf16>();
template const void* widest_kernel<Bf16, WidestGradient::dk>();
template const void* widest_kernel<Bf16, WidestGradient::dv>();
template const void* widest_kernel<Bf16, WidestGradient::dq>();
template const void* finish_kernel<Bf16>();

template const void* prepare_kernel<F16>();
template const void* widest_kernel<F16, WidestGradient::dk>();
template const void* widest_kernel<F16, WidestGradient::dv>();
template const void* widest_kernel<F16, WidestGradient::dq>();
template const void* finish_kernel<F16>();

}  // namespace foveal::sm90
