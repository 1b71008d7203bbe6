// wgmma: the warpgroup's asynchronous matrix multiply, D[64, n] += A[64, 16] * B[16, n], fp32 accumulation.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions":
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
//
// Which element of D a register holds: tile/fragment.hpp. An accumulator may be read only after wgmma_wait_group and a
// pin() behind it.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/ptx/wgmma_operands.cuh"

namespace foveal::sm90::ptx {

// wgmma.fence: orders the warpgroup's register writes before the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// wgmma.commit_group: closes the group of all wgmmas issued since the last one.
__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// wgmma.wait_group: until at most kPending of the youngest groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction: the compiler must have the values in registers here, and moves no use of them upwards past it.
template <int kCount>
__device__ __forceinline__ void pin(float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

__device__ __forceinline__ void pin(uint32_t (&x)[4]) {
    asm volatile("" : "+r"(x[0]), "+r"(x[1]), "+r"(x[2]), "+r"(x[3])::"memory");
}

// `accumulate` false: D = A * B. B of the _mn forms is stored with n contiguous ("MN-major"), of the others with k.

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n64k16_bf16_ss(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n64k16_bf16_rs_mn(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                           bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k16.f32.f16.f16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n64k16_f16_ss(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FOVEAL_WGMMA_D32 "}, %32, %33, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k16.f32.f16.f16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n64k16_f16_rs_mn(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                          bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FOVEAL_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n72k16.f32.bf16.bf16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n72k16_bf16_rs_mn(float (&d)[36], const uint32_t (&a)[4], uint64_t b,
                                                           bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %41, 0;"
        "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D36
        "}, {%36, %37, %38, %39}, %40, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT36(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n72k16.f32.f16.f16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n72k16_f16_rs_mn(float (&d)[36], const uint32_t (&a)[4], uint64_t b,
                                                          bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %41, 0;"
        "wgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 {" FOVEAL_WGMMA_D36
        "}, {%36, %37, %38, %39}, %40, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT36(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n128k16.f32.bf16.bf16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n128k16_bf16_ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D64 "}, %64, %65, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT64(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n128k16.f32.bf16.bf16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n128k16_bf16_rs_mn(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                            bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n128k16.f32.f16.f16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n128k16_f16_ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" FOVEAL_WGMMA_D64 "}, %64, %65, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT64(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n128k16.f32.f16.f16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n128k16_f16_rs_mn(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                           bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" FOVEAL_WGMMA_D64
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n32k16.f32.bf16.bf16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n32k16_bf16_ss(float (&d)[16], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %18, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT16(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n32k16.f32.f16.f16: A and B from shared memory, both k-major.
__device__ __forceinline__ void wgmma_m64n32k16_f16_ss(float (&d)[16], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %18, 0;"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" FOVEAL_WGMMA_D16 "}, %16, %17, p, 1, 1, 0, 0;}"
        : FOVEAL_WGMMA_OUT16(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n256k16.f32.bf16.bf16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n256k16_bf16_rs_mn(float (&d)[128], const uint32_t (&a)[4], uint64_t b,
                                                            bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %133, 0;"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D128
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n256k16.f32.f16.f16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n256k16_f16_rs_mn(float (&d)[128], const uint32_t (&a)[4], uint64_t b,
                                                           bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %133, 0;"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" FOVEAL_WGMMA_D128
        "}, {%128, %129, %130, %131}, %132, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT128(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// S = A * B^T with both operands in shared memory, k-major.
template <DType kType, int kCount>
__device__ __forceinline__ void wgmma_ss(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kCount == 16 || kCount == 32 || kCount == 64);
    constexpr bool kBf16 = kType == DType::bf16;
    if constexpr (kCount == 16 && kBf16) wgmma_m64n32k16_bf16_ss(d, a, b, accumulate);
    if constexpr (kCount == 16 && !kBf16) wgmma_m64n32k16_f16_ss(d, a, b, accumulate);
    if constexpr (kCount == 32 && kBf16) wgmma_m64n64k16_bf16_ss(d, a, b, accumulate);
    if constexpr (kCount == 32 && !kBf16) wgmma_m64n64k16_f16_ss(d, a, b, accumulate);
    if constexpr (kCount == 64 && kBf16) wgmma_m64n128k16_bf16_ss(d, a, b, accumulate);
    if constexpr (kCount == 64 && !kBf16) wgmma_m64n128k16_f16_ss(d, a, b, accumulate);
}

// D += A * B with A in registers and B in shared memory, MN-major.
template <DType kType, int kCount>
__device__ __forceinline__ void wgmma_rs_mn(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(kCount == 32 || kCount == 36 || kCount == 64 || kCount == 128);
    constexpr bool kBf16 = kType == DType::bf16;
    if constexpr (kCount == 32 && kBf16) wgmma_m64n64k16_bf16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 32 && !kBf16) wgmma_m64n64k16_f16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 36 && kBf16) wgmma_m64n72k16_bf16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 36 && !kBf16) wgmma_m64n72k16_f16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 64 && kBf16) wgmma_m64n128k16_bf16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 64 && !kBf16) wgmma_m64n128k16_f16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 128 && kBf16) wgmma_m64n256k16_bf16_rs_mn(d, a, b, accumulate);
    if constexpr (kCount == 128 && !kBf16) wgmma_m64n256k16_f16_rs_mn(d, a, b, accumulate);
}

}  // namespace foveal::sm90::ptx
