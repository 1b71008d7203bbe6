#include "sm90/backward/wide_keys.cuh"
#include "sm90/backward/wide_queries.cuh"

namespace foveal::sm90 {

template const void* wide_keys_kernel<BackwardInstance<DType::bf16, kBackwardD192, BackwardVariant::dropout>>();
template const void* wide_queries_kernel<BackwardInstance<DType::bf16, kBackwardD192, BackwardVariant::dropout>>();

template const void* wide_keys_kernel<BackwardInstance<DType::f16, kBackwardD192, BackwardVariant::dropout>>();
template const void* wide_queries_kernel<BackwardInstance<DType::f16, kBackwardD192, BackwardVariant::dropout>>();

}  // namespace foveal::sm90
