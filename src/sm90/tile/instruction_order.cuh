// How ptxas is made to issue instructions in a certain order. By itself it (13.0) issues what is ready and short first:
// all multiplications of a basic block, say, and then one exponential after the other, each of which waits for the MUFU
// while nothing is left to be issued in the gaps. An instruction that depends on an exponential cannot be issued before
// it; so a dependence that changes nothing keeps work for the gaps.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

// x, but not before `other` is there. It costs one instruction. zero: a 0 that the compiler does not know to be one.
__device__ __forceinline__ float not_before(float x, float other, uint32_t zero) {
    return __uint_as_float(__float_as_uint(x) | (__float_as_uint(other) & zero));
}

}  // namespace foveal::sm90
