#include "sm90/backward/score_sums.cuh"

namespace foveal::sm90 {

template const void* score_sums_kernel<DType::bf16, false>();
template const void* score_sums_kernel<DType::bf16, true>();
template const void* add_score_sums_kernel<DType::bf16>();
template const void* score_sums_kernel<DType::f16, false>();
template const void* score_sums_kernel<DType::f16, true>();
template const void* add_score_sums_kernel<DType::f16>();

}  // namespace foveal::sm90
