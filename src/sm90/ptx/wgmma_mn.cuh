// wgmma with A and B from shared memory, both stored with m or n contiguous ("MN-major"): see wgmma.cuh.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/ptx/wgmma_operands.cuh"

namespace foveal::sm90::ptx {

// wgmma.mma_async.m64n32k16.f32.bf16.bf16: D = A * B. What D was is not read, so that it lives in no register before.
__device__ __forceinline__ void wgmma_m64n32k16_bf16_mn_new(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_NEW16(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n32k16.f32.bf16.bf16: D += A * B.
__device__ __forceinline__ void wgmma_m64n32k16_bf16_mn(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT16(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n32k16.f32.f16.f16: D = A * B. What D was is not read, so that it lives in no register before.
__device__ __forceinline__ void wgmma_m64n32k16_f16_mn_new(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_NEW16(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n32k16.f32.f16.f16: D += A * B.
__device__ __forceinline__ void wgmma_m64n32k16_f16_mn(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT16(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: D = A * B. What D was is not read, so that it lives in no register before.
__device__ __forceinline__ void wgmma_m64n64k16_bf16_mn_new(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_NEW32(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: D += A * B.
__device__ __forceinline__ void wgmma_m64n64k16_bf16_mn(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n64k16.f32.f16.f16: D = A * B. What D was is not read, so that it lives in no register before.
__device__ __forceinline__ void wgmma_m64n64k16_f16_mn_new(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_NEW32(d)
        : "l"(a), "l"(b));
}

// wgmma.mma_async.m64n64k16.f32.f16.f16: D += A * B.
__device__ __forceinline__ void wgmma_m64n64k16_f16_mn(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "l"(a), "l"(b));
}

// D += A * B; D = A * B if kNew.
template <DType kType, bool kNew, int kCount>
__device__ __forceinline__ void wgmma_mn(float (&d)[kCount], uint64_t a, uint64_t b) {
    static_assert(kCount == 16 || kCount == 32);
    constexpr bool kBf16 = kType == DType::bf16;
    if constexpr (kCount == 16 && kBf16 && kNew) wgmma_m64n32k16_bf16_mn_new(d, a, b);
    if constexpr (kCount == 16 && kBf16 && !kNew) wgmma_m64n32k16_bf16_mn(d, a, b);
    if constexpr (kCount == 16 && !kBf16 && kNew) wgmma_m64n32k16_f16_mn_new(d, a, b);
    if constexpr (kCount == 16 && !kBf16 && !kNew) wgmma_m64n32k16_f16_mn(d, a, b);
    if constexpr (kCount == 32 && kBf16 && kNew) wgmma_m64n64k16_bf16_mn_new(d, a, b);
    if constexpr (kCount == 32 && kBf16 && !kNew) wgmma_m64n64k16_bf16_mn(d, a, b);
    if constexpr (kCount == 32 && !kBf16 && kNew) wgmma_m64n64k16_f16_mn_new(d, a, b);
    if constexpr (kCount == 32 && !kBf16 && !kNew) wgmma_m64n64k16_f16_mn(d, a, b);
}

}  // namespace foveal::sm90::ptx
