// wgmma: the warpgroup's asynchronous matrix multiply, D[64, n] += A[64, 16] * B[16, n], fp32 accumulation.
// PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions":
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
//
// Which element of D a register holds: tile/fragment.hpp. An accumulator may be read only after wgmma_wait_group and a
// pin() behind it.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"

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

// The operand lists of the instructions below: accumulators %0 to %(n/2 - 1), then A, then B.
#define FOVEAL_WGMMA_D32                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FOVEAL_WGMMA_OUT32(d)                                                                                   \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define FOVEAL_WGMMA_D36 FOVEAL_WGMMA_D32 ", %32, %33, %34, %35"
#define FOVEAL_WGMMA_OUT36(d) FOVEAL_WGMMA_OUT32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define FOVEAL_WGMMA_D64                                                               \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FOVEAL_WGMMA_OUT64(d)                                                                                   \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),  \
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), \
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), \
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), \
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), \
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

#define FOVEAL_WGMMA_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FOVEAL_WGMMA_OUT16(d)                                                                                   \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define FOVEAL_WGMMA_D128                                                                          \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOVEAL_WGMMA_OUT128(d)                                                                                       \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),      \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),       \
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),      \
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),      \
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),      \
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),      \
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),      \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),      \
        "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),      \
        "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),      \
        "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),      \
        "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),      \
        "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), \
        "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),            \
        "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]),            \
        "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]),            \
        "+f"(d[126]), "+f"(d[127])

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

#undef FOVEAL_WGMMA_D16
#undef FOVEAL_WGMMA_D128
#undef FOVEAL_WGMMA_OUT16
#undef FOVEAL_WGMMA_OUT128
#undef FOVEAL_WGMMA_D32
#undef FOVEAL_WGMMA_D36
#undef FOVEAL_WGMMA_OUT36
#undef FOVEAL_WGMMA_D64
#undef FOVEAL_WGMMA_OUT32
#undef FOVEAL_WGMMA_OUT64

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
