// Instructions of a warp or warpgroup that CCCL 3.0's cuda::ptx does not have.
#pragma once

#include <cstdint>

namespace foveal::sm90::ptx {

// elect.sync: true in one lane of a converged warp.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-elect-sync
__device__ __forceinline__ bool elect_sync() {
    uint32_t elected;
    asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(elected));
    return elected != 0;
}

// %laneid, read here and not before: what is computed from it does not occupy registers from the kernel's start on.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-laneid
__device__ __forceinline__ int32_t lane_id() {
    int32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

// setmaxnreg: hands registers of this warpgroup back to the pool, or takes some.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// barrier.sync.aligned: arrives at named barrier `id` and waits until `threads` threads have.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
__device__ __forceinline__ void barrier_sync(int32_t id, int32_t threads) {
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// barrier.arrive.aligned: arrives without waiting.
__device__ __forceinline__ void barrier_arrive(int32_t id, int32_t threads) {
    asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// barrier.red.and: the same, and tells whether `condition` holds in all of them.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
__device__ __forceinline__ bool barrier_red_and(int32_t id, int32_t threads, bool condition) {
    uint32_t all;
    asm volatile(
        "{.reg .pred p, q; setp.ne.u32 p, %3, 0; barrier.red.and.pred.aligned q, %1, %2, p; selp.u32 %0, 1, 0, q;}"
        : "=r"(all)
        : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(condition))
        : "memory");
    return all != 0;
}

// stmatrix.x4: four 8x8 matrices of 16-bit elements from the warp's registers; lane l gives the address of row l % 8 of
// matrix l / 8.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
__device__ __forceinline__ void stmatrix_x4(uint32_t shared_address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// ldmatrix.x4: the same from shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-ldmatrix
__device__ __forceinline__ void ldmatrix_x4(uint32_t shared_address, uint32_t (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address)
                 : "memory");
}

// ldmatrix.x4.trans: each of the four is transposed on its way.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-ldmatrix
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t shared_address, uint32_t (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address)
                 : "memory");
}

// movmatrix.trans: transposes an 8x8 matrix of 16-bit elements across the warp's registers.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-movmatrix
__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t matrix) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
    return transposed;
}

// ex2.approx.ftz: 2^x, relative error 2^-22; 2^-inf = 0.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-ex2
__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace foveal::sm90::ptx
