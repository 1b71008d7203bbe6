#include "sm90/backward/finish.cuh"
#include "sm90/backward/prepare.cuh"
#include "sm90/backward/wide_keys.cuh"
#include "sm90/backward/wide_queries.cuh"

namespace foveal::sm90 {

template const void* prepare_kernel<BackwardInstance<DType::bf16, kBackwardD256>>();
template const void* wide_keys_kernel<BackwardInstance<DType::bf16, kBackwardD256>>();
template const void* wide_queries_kernel<BackwardInstance<DType::bf16, kBackwardD256>>();
template const void* finish_kernel<BackwardInstance<DType::bf16, kBackwardD256>>();

template const void* prepare_kernel<BackwardInstance<DType::f16, kBackwardD256>>();
template const void* wide_keys_kernel<BackwardInstance<DType::f16, kBackwardD256>>();
template const void* wide_queries_kernel<BackwardInstance<DType::f16, kBackwardD256>>();
template const void* finish_kernel<BackwardInstance<DType::f16, kBackwardD256>>();

}  // namespace foveal::sm90
