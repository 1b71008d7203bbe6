// Values that are the same in all lanes of a warp.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

// x of lane 0. The compiler then knows that it is the same everywhere, and keeps what follows from it in uniform
// registers.
__device__ __forceinline__ uint32_t uniform(uint32_t x) { return __shfl_sync(~0u, x, 0); }
__device__ __forceinline__ int32_t uniform(int32_t x) { return __shfl_sync(~0u, x, 0); }

}  // namespace foveal::sm90
