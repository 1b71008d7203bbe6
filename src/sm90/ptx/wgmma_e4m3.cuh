// wgmma over e4m3, D[64, n] += A[64, 32] * B[32, n], fp32 accumulation (of which the tensor cores keep about 14 bits),
// and the conversion beside it. Both operands are k-major: there is no other form of 8-bit elements. wgmma.cuh has
// what all types share. PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions":
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
#pragma once

#include <cstdint>

#include "sm90/ptx/wgmma.cuh"

namespace foveal::sm90::ptx {

// wgmma.mma_async.m64n128k32.f32.e4m3.e4m3: A and B from shared memory.
__device__ __forceinline__ void wgmma_m64n128k32_e4m3_ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" FOVEAL_WGMMA_D64 "}, %64, %65, p, 1, 1;}"
        : FOVEAL_WGMMA_OUT64(d)
        : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k32.f32.e4m3.e4m3: A from registers, B from shared memory.
__device__ __forceinline__ void wgmma_e4m3_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" FOVEAL_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n72k32.f32.e4m3.e4m3: A from registers, B from shared memory.
__device__ __forceinline__ void wgmma_e4m3_rs(float (&d)[36], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %41, 0;"
        "wgmma.mma_async.sync.aligned.m64n72k32.f32.e4m3.e4m3 {" FOVEAL_WGMMA_D36
        "}, {%36, %37, %38, %39}, %40, p, 1, 1;}"
        : FOVEAL_WGMMA_OUT36(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// cvt.rn.satfinite.e4m3x2.f32, twice: four numbers, the first in the lowest byte. What is beyond 448 becomes 448.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
    uint32_t packed;
    asm("{.reg .b16 low, high;"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;"
        "mov.b32 %0, {low, high};}"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}

}  // namespace foveal::sm90::ptx
