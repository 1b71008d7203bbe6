// e4m3 as a type that is stored (tile/format.cuh has the others).
#pragma once

#include <cstdint>

#include "sm90/ptx/e4m3.cuh"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {

template <>
struct Format<DType::e4m3> : FormatOfElement<uint8_t> {
    // What is too large, infinities too, becomes the largest number.
    static __device__ __forceinline__ Element round(float x) {
        return static_cast<Element>(ptx::f32x2_to_e4m3x2(x, 0.0f));
    }
};

}  // namespace foveal::sm90
