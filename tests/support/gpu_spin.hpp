// Kernels that keep a stream busy, and one that does nothing.
#pragma once

#include <cuda_runtime_api.h>

namespace foveal_testing {

// Enqueues a kernel that runs for at least this long.
void spin(int milliseconds, cudaStream_t stream);

// Enqueues a kernel with as many bytes of arguments as the library's, which returns at once.
void launch_nothing(cudaStream_t stream);

}  // namespace foveal_testing
