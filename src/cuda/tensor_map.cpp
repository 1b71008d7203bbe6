#include "cuda/tensor_map.hpp"

#include <string>

#include "cuda/driver.hpp"
#include "foveal/types.hpp"

namespace foveal::cuda {
namespace {

CUtensorMapDataType type_in_maps(DType dtype) {
    if (dtype == DType::e4m3) return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    return dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

}  // namespace

CUtensorMap tensor_map(DType dtype, const MappedTensor& t, MapBox map_box) {
    const cuuint64_t shape[4] = {static_cast<cuuint64_t>(t.head_dim), static_cast<cuuint64_t>(t.rows),
                                 static_cast<cuuint64_t>(t.heads), static_cast<cuuint64_t>(t.batch)};
    // A dimension of size 1 has no stride of its own: any multiple of 16 will do. 0 is a dimension that is shared.
    const auto stride_bytes = [dtype](int64_t size, int64_t elements) {
        return static_cast<cuuint64_t>(size <= 1 ? 16 : elements * bytes_of(dtype));
    };
    const cuuint64_t strides[3] = {stride_bytes(t.rows, t.strides.row), stride_bytes(t.heads, t.strides.head),
                                   stride_bytes(t.batch, t.strides.batch)};
    const cuuint32_t box[4] = {static_cast<cuuint32_t>(map_box.columns), static_cast<cuuint32_t>(map_box.rows), 1, 1};
    const cuuint32_t element_strides[4] = {1, 1, 1, 1};
    // A box is 128 bytes wide. Fetching 256 at its misses, half of a row of d 128 for the box beside it, made what
    // waits for DRAM up to 9 % slower (H200, 2026-11-28: docs/performance-log, 72).
    const int64_t box_row_bytes = map_box.columns * bytes_of(dtype);
    CUtensorMap map;
    const CUresult result = driver().encode_tiled(
        &map, type_in_maps(dtype), 4, const_cast<void*>(t.data), shape, strides, box, element_strides,
        CU_TENSOR_MAP_INTERLEAVE_NONE, box_row_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw Error(FOVEAL_CUDA_ERROR, std::string("cuTensorMapEncodeTiled refuses ") + t.name + " with CUresult " +
                                           std::to_string(result));
    return map;
}

}  // namespace foveal::cuda
