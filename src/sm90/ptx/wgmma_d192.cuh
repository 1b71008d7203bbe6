// wgmma of the forms that only gradients of heads of 192 columns take: see wgmma.cuh.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/ptx/wgmma_operands.cuh"

#define FOVEAL_WGMMA_D96                                                                 \
    FOVEAL_WGMMA_D64                                                                     \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FOVEAL_WGMMA_OUT96(d)                                                                                         \
    FOVEAL_WGMMA_OUT64(d), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), \
        "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]),       \
        "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]),       \
        "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]),       \
        "+f"(d[95])

namespace foveal::sm90::ptx {

// wgmma.mma_async.m64n192k16.f32.bf16.bf16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n192k16_bf16_rs_mn(float (&d)[96], const uint32_t (&a)[4], uint64_t b,
                                                            bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %101, 0;"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D96
        "}, {%96, %97, %98, %99}, %100, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT96(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n192k16.f32.f16.f16: A from registers, B from shared memory, MN-major.
__device__ __forceinline__ void wgmma_m64n192k16_f16_rs_mn(float (&d)[96], const uint32_t (&a)[4], uint64_t b,
                                                           bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %101, 0;"
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.f16.f16 {" FOVEAL_WGMMA_D96
        "}, {%96, %97, %98, %99}, %100, p, 1, 1, 1;}"
        : FOVEAL_WGMMA_OUT96(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k16.f32.bf16.bf16: A from registers, B from shared memory, k-major.
__device__ __forceinline__ void wgmma_m64n64k16_bf16_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                        bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" FOVEAL_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// wgmma.mma_async.m64n64k16.f32.f16.f16: A from registers, B from shared memory, k-major.
__device__ __forceinline__ void wgmma_m64n64k16_f16_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                       bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" FOVEAL_WGMMA_D32
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : FOVEAL_WGMMA_OUT32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(accumulate)));
}

// D += A * B with A in registers and B in shared memory, MN-major.
template <DType kType>
__device__ __forceinline__ void wgmma_rs_mn(float (&d)[96], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    if constexpr (kType == DType::bf16)
        wgmma_m64n192k16_bf16_rs_mn(d, a, b, accumulate);
    else
        wgmma_m64n192k16_f16_rs_mn(d, a, b, accumulate);
}

// S += A * B^T with A in registers and B in shared memory, k-major.
template <DType kType>
__device__ __forceinline__ void wgmma_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    if constexpr (kType == DType::bf16)
        wgmma_m64n64k16_bf16_rs(d, a, b, accumulate);
    else
        wgmma_m64n64k16_f16_rs(d, a, b, accumulate);
}

}  // namespace foveal::sm90::ptx
