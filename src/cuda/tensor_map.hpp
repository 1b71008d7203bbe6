// Tensors as the copy engine (TMA) sees them.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "problem/dtype.hpp"
#include "problem/strides.hpp"

namespace foveal::cuda {

// A [b, s, h, d] tensor (varlen: b = 1): its coordinates in a map are (column, row, head, batch).
struct MappedTensor {
    const char* name;  // for messages
    const void* data;
    int64_t batch, rows, heads, head_dim;
    Strides strides;
};

// What one copy moves: so many rows of one head, of so many columns, which lie in shared memory as rows of 128 bytes
// with the 128-byte swizzle, or of 64 with the 64-byte swizzle. What lies outside the tensor is read as zeros and not
// written.
struct MapBox {
    int32_t columns, rows;
};

// Throws Error(CUDA_ERROR) naming the tensor where the driver refuses.
CUtensorMap tensor_map(DType dtype, const MappedTensor& tensor, MapBox box);

}  // namespace foveal::cuda
