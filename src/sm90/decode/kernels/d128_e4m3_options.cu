#include "sm90/decode/kernel.cuh"

namespace foveal::sm90 {

template const void* decode_kernel<DecodeE4m3Instance<DType::bf16, kDecodeD128C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::bf16, kDecodeD128C16, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::f16, kDecodeD128C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::f16, kDecodeD128C16, DecodeVariant::options>>();

}  // namespace foveal::sm90
