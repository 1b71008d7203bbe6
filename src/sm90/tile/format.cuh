// What an element type is to the kernels: the only place that knows its size, its bits and its conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/tile/panel.hpp"

namespace foveal::sm90 {

// What follows from the size alone.
template <class ElementType>
struct FormatOfElement {
    using Element = ElementType;
    static constexpr int32_t kBytes = sizeof(Element);
    static constexpr int32_t kPanelColumns = kPanelRowBytes / kBytes;
    static constexpr int32_t kKstepBytes = 32;                      // of a row, that one wgmma multiplies ...
    static constexpr int32_t kKstepColumns = kKstepBytes / kBytes;  // ... its K
};

// widen(), round(): one element to fp32 and from it. Of the types that are multiplied also the bits of 1, of the least
// number that makes a score wide (scores/base_2.hpp), of the least that makes a bias high (forward/consumer.cuh,
// bias_is_high()) and, for as many neighbours as fit into 32 bits, pack(), unpack(), add() and larger_magnitude(). A
// type is added by one specialisation.
template <DType kType>
struct Format;

template <>
struct Format<DType::f32> : FormatOfElement<float> {
    static __device__ __forceinline__ float widen(float x) { return x; }
    static __device__ __forceinline__ float round(float x) { return x; }
};

template <>
struct Format<DType::bf16> : FormatOfElement<__nv_bfloat16> {
    static constexpr uint16_t kOneBits = 0x3F80;
    static constexpr uint32_t kWideBits = 0x7E00;  // of 2^125, from which on scores are wide
    static constexpr uint32_t kHighBits = 0x4400;  // of 2^9

    static __device__ __forceinline__ float widen(Element x) { return __bfloat162float(x); }
    static __device__ __forceinline__ Element round(float x) { return __float2bfloat16_rn(x); }

    static __device__ __forceinline__ uint32_t pack(float a, float b) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        return reinterpret_cast<const uint32_t&>(pair);
    }
    // A bf16 is the upper half of an fp32. (__bfloat1622float2 takes two more instructions, nvcc 13.0.)
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
    }
    static __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) {
        const __nv_bfloat162 sum =
            __hadd2(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
        return reinterpret_cast<const uint32_t&>(sum);
    }
    // The larger of |a| and b of both neighbours.
    static __device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, uint32_t b) {
        const __nv_bfloat162 larger =
            __hmax2(__habs2(reinterpret_cast<const __nv_bfloat162&>(a)), reinterpret_cast<const __nv_bfloat162&>(b));
        return reinterpret_cast<const uint32_t&>(larger);
    }
};

template <>
struct Format<DType::f16> : FormatOfElement<__half> {
    static constexpr uint16_t kOneBits = 0x3C00;
    static constexpr uint32_t kWideBits = 0x7C00;  // of infinity: no other number is wide
    static constexpr uint32_t kHighBits = 0x6000;  // of 2^9

    static __device__ __forceinline__ float widen(Element x) { return __half2float(x); }
    static __device__ __forceinline__ Element round(float x) { return __float2half_rn(x); }

    static __device__ __forceinline__ uint32_t pack(float a, float b) {
        const __half2 pair = __floats2half2_rn(a, b);
        return reinterpret_cast<const uint32_t&>(pair);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __half22float2(reinterpret_cast<const __half2&>(pair));
    }
    static __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) {
        const __half2 sum = __hadd2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
        return reinterpret_cast<const uint32_t&>(sum);
    }
    static __device__ __forceinline__ uint32_t larger_magnitude(uint32_t a, uint32_t b) {
        const __half2 larger =
            __hmax2(__habs2(reinterpret_cast<const __half2&>(a)), reinterpret_cast<const __half2&>(b));
        return reinterpret_cast<const uint32_t&>(larger);
    }
};

}  // namespace foveal::sm90
