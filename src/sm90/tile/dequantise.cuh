// e4m3 to a type of 16 bits, in registers: each element times a factor in fp32, rounded once (contract 1.14).
#pragma once

#include <cstdint>

#include "problem/dtype.hpp"
#include "sm90/ptx/e4m3.cuh"
#include "sm90/tile/format.cuh"

namespace foveal::sm90 {

// Four neighbours as numbers, the lowest byte's first.
__device__ __forceinline__ void widen_e4m3(uint32_t codes, float (&x)[4]) {
    uint32_t lower, upper;
    ptx::e4m3x4_to_f16x4(codes, lower, upper);
    const float2 low = Format<DType::f16>::unpack(lower), high = Format<DType::f16>::unpack(upper);
    x[0] = low.x;
    x[1] = low.y;
    x[2] = high.x;
    x[3] = high.y;
}

// Four neighbours of one row, as two pairs.
template <DType kType>
__device__ __forceinline__ void dequantise(uint32_t codes, float descale, uint32_t& first, uint32_t& second) {
    float x[4];
    widen_e4m3(codes, x);
    first = Format<kType>::pack(x[0] * descale, x[1] * descale);
    second = Format<kType>::pack(x[2] * descale, x[3] * descale);
}

// Two neighbours of a row, and the two below them: each column becomes a pair.
template <DType kType>
__device__ __forceinline__ void dequantise_columns(uint32_t codes, float upper_descale, float lower_descale,
                                                   uint32_t& first, uint32_t& second) {
    float x[4];
    widen_e4m3(codes, x);
    first = Format<kType>::pack(x[0] * upper_descale, x[2] * lower_descale);
    second = Format<kType>::pack(x[1] * upper_descale, x[3] * lower_descale);
}

}  // namespace foveal::sm90
