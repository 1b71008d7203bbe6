// Programmatic dependent launch: a kernel may set itself up while the one before it in the stream ends.
#pragma once

namespace foveal::sm90 {

// Global memory is touched after the wait only; what comes after this kernel may start only when all before it has
// ended.
__device__ __forceinline__ void await_kernel_before() {
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
}

}  // namespace foveal::sm90
