#include "sm90/decode/kernel.cuh"

namespace foveal::sm90 {

template const void* decode_kernel<DecodeE4m3Instance<DType::bf16, kDecodeD64C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::bf16, kDecodeD64C16, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::f16, kDecodeD64C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeE4m3Instance<DType::f16, kDecodeD64C16, DecodeVariant::options>>();

}  // namespace foveal::sm90
