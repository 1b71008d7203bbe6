// What ptxas is to issue in turn. It (13.0) takes what is ready and short first, all multiplications of a basic block,
// say, and then one exponential after the other, each of which waits for the MUFU with nothing to do in the gaps. What
// depends on an exponential cannot be taken before it; so that is how the gaps are filled.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

// x, but not before `other` is there: an instruction. zero: ForwardParams::zero.
__device__ __forceinline__ float not_before(float x, float other, uint32_t zero) {
    return __uint_as_float(__float_as_uint(x) | (__float_as_uint(other) & zero));
}

}  // namespace foveal::sm90
