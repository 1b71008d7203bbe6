// Functions that kernels and host code share.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FOVEAL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FOVEAL_HOST_DEVICE inline
#endif

namespace foveal {

FOVEAL_HOST_DEVICE int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
FOVEAL_HOST_DEVICE int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

}  // namespace foveal
