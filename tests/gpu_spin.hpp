// A kernel that keeps a stream busy.
#pragma once

#include <cuda_runtime_api.h>

namespace foveal_testing {

// Enqueues a kernel that runs for at least this long.
void spin(int milliseconds, cudaStream_t stream);

}  // namespace foveal_testing
