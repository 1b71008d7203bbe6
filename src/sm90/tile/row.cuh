// What the four lanes that share a row of a Fragment find together.
#pragma once

#include <cstdint>

#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// They, as a mask of lanes.
__device__ __forceinline__ uint32_t lanes_of_row(uint32_t lane) {
    static_assert(Fragment::kRowLanes == 4);
    return 0xfu << (lane & ~3u);
}

}  // namespace foveal::sm90
