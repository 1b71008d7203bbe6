// cp.async: a thread's own copies from global to shared memory, past the registers.
#pragma once

#include <cstdint>

namespace foveal::sm90::ptx {

// 16 bytes; zeros in place of them if not `exists`.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
__device__ __forceinline__ void copy_async(uint32_t shared_address, const void* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address), "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
}
// 4 bytes.
__device__ __forceinline__ void copy_async_4(uint32_t shared_address, const void* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address), "l"(from), "r"(exists ? 4 : 0)
                 : "memory");
}
// cp.async.mbarrier.arrive.noinc: one arrival, counted in the barrier's initial number, when all copies that this
// thread has begun are there.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-cp-async-mbarrier-arrive
__device__ __forceinline__ void arrive_when_copied(uint64_t& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(&barrier)))
                 : "memory");
}
// cp.async.wait_all: this thread's copies are there.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace foveal::sm90::ptx
