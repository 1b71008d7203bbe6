#include "sm90/decode/kernel.cuh"

namespace foveal::sm90 {

template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD512C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD512C8, DecodeVariant::options>>();

}  // namespace foveal::sm90
