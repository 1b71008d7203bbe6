#include "sm90/decode/kernel.cuh"

namespace foveal::sm90 {

template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD64C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeInstance<DType::bf16, kDecodeD64C16, DecodeVariant::options>>();
template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD64C8, DecodeVariant::options>>();
template const void* decode_kernel<DecodeInstance<DType::f16, kDecodeD64C16, DecodeVariant::options>>();

}  // namespace foveal::sm90
