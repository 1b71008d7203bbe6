// A row of a Fragment: what a thread finds in its part of it, and the four lanes that share it together.
#pragma once

#include <cstdint>

#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

// Of the thread's row r.
template <int32_t kSize>
__device__ __forceinline__ float thread_max(const float (&s)[kSize], int32_t r) {
    float top = s[Fragment::index(r, 0)];
#pragma unroll
    for (int32_t i = 0; i < kSize; ++i)
        if (Fragment::row(i) == r) top = fmaxf(top, s[i]);
    return top;
}

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
