// Global memory that several CTAs of a launch share: past the L1, which is not kept coherent, and in order.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
// https://docs.nvidia.com/cuda/parallel-thread-execution/#memory-consistency-model
#pragma once

#include <cstdint>

namespace foveal::sm90::ptx {

// st.relaxed.gpu.v4, .v2: neighbouring floats, aligned to as many.
__device__ __forceinline__ void store_relaxed(float* to, const float (&x)[4]) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]),
                 "f"(x[3])
                 : "memory");
}
__device__ __forceinline__ void store_relaxed(float* to, const float (&x)[2]) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x[0]), "f"(x[1]) : "memory");
}

// ld.relaxed.gpu.v4, .v2: the same. Where not `exists`, x stays what it is; no branch.
__device__ __forceinline__ void load_relaxed_if(float (&x)[4], const float* from, bool exists) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];}"
                 : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
                 : "l"(from), "r"(static_cast<uint32_t>(exists))
                 : "memory");
}
__device__ __forceinline__ void load_relaxed_if(float (&x)[2], const float* from, bool exists) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %3, 0; @p ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];}"
                 : "+f"(x[0]), "+f"(x[1])
                 : "l"(from), "r"(static_cast<uint32_t>(exists))
                 : "memory");
}

// atom.add.acq_rel.gpu: what it was. What this thread has seen written before is then written for who adds after it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-atom
__device__ __forceinline__ int32_t atomic_add_acq_rel(int32_t* to, int32_t x) {
    int32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(x) : "memory");
    return before;
}

// ld.acquire.gpu: what was written before the value was released is seen after it.
__device__ __forceinline__ int32_t load_acquire(const int32_t* at) {
    int32_t value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

// red.release.gpu.add: adds to the value after all that this thread wrote before.
__device__ __forceinline__ void add_release(int32_t* at, int32_t value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

// fence.proxy.async: orders this thread's ordinary accesses to any memory and those of the copy engine.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar-fence
__device__ __forceinline__ void fence_proxy_async_all() { asm volatile("fence.proxy.async;" ::: "memory"); }

}  // namespace foveal::sm90::ptx
