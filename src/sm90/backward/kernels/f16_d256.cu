#include "sm90/backward/finish.cuh"
#include "sm90/backward/prepare.cuh"
#include "sm90/backward/wide_keys.cuh"
#include "sm90/backward/wide_queries.cuh"

namespace foveal::sm90 {

using Instance = BackwardInstance<DType::f16, kBackwardD256>;
template const void* prepare_kernel<Instance>();
template const void* wide_keys_kernel<Instance>();
template const void* wide_queries_kernel<Instance>();
template const void* finish_kernel<Instance>();

}  // namespace foveal::sm90
