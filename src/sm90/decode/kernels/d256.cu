#include "sm90/decode/kernel.cuh"

namespace foveal::sm90 {

template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD256C4, DecodeVariant::plain>>();
template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD256C8, DecodeVariant::plain>>();
template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD256C16, DecodeVariant::plain>>();

template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD256C4, DecodeVariant::plain>>();
template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD256C8, DecodeVariant::plain>>();
template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD256C16, DecodeVariant::plain>>();

}  // namespace foveal::sm90
