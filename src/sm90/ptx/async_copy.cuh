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
// cp.async.wait_all: this thread's copies are there.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace foveal::sm90::ptx
