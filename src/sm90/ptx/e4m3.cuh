// Conversions from and to e4m3, two at a time.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
#pragma once

#include <cstdint>

namespace foveal::sm90::ptx {

// cvt.rn.f16x2.e4m3x2, of either half of four codes: the lower byte becomes the lower half. Exact; NaN stays NaN.
__device__ __forceinline__ void e4m3x4_to_f16x4(uint32_t codes, uint32_t& lower, uint32_t& upper) {
    asm("{.reg .b16 l, u; mov.b32 {l, u}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, u;}"
        : "=r"(lower), "=r"(upper)
        : "r"(codes));
}

// cvt.rn.satfinite.e4m3x2.f32: ties to even; what is too large, infinities too, becomes the largest; NaN stays NaN.
__device__ __forceinline__ uint16_t f32x2_to_e4m3x2(float lower, float upper) {
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(upper), "f"(lower));
    return codes;
}

}  // namespace foveal::sm90::ptx
