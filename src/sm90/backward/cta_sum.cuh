// A sum over the threads of a CTA, in a fixed order.
#pragma once

#include <cstdint>

#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// The sum of all threads' x, in all of them. Once a kernel.
template <int32_t kThreads, class Number>
__device__ __forceinline__ Number cta_sum(Number x) {
    __shared__ Number of_warp[kThreads / kWarpThreads];
#pragma unroll
    for (int32_t distance = kWarpThreads / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    if (threadIdx.x % kWarpThreads == 0) of_warp[threadIdx.x / kWarpThreads] = x;
    __syncthreads();
    Number sum = 0;
#pragma unroll
    for (const Number part : of_warp) sum += part;
    return sum;
}

}  // namespace foveal::sm90
