#include "sm90/forward/e4m3/kernel.cuh"

namespace foveal::sm90 {

template const void* forward_e4m3_kernel<E4m3Instance<DType::bf16, 64, false>>();
template const void* forward_e4m3_kernel<E4m3Instance<DType::bf16, 64, true>>();
template const void* forward_e4m3_kernel<E4m3Instance<DType::f16, 64, false>>();
template const void* forward_e4m3_kernel<E4m3Instance<DType::f16, 64, true>>();

}  // namespace foveal::sm90
