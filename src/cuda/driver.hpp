// The CUDA driver's functions that the runtime has no equal for, and its errors as ours.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace foveal::cuda {

// Throws Error(CUDA_ERROR) unless all went well.
void check(cudaError_t status, const char* what);
void check(CUresult status, const char* what);

struct Driver {
    decltype(&cuDeviceGet) device_of_ordinal;
    decltype(&cuDeviceGetName) device_name;
    decltype(&cuTensorMapEncodeTiled) encode_tiled;
    decltype(&cuStreamGetCtx) stream_context;
    decltype(&cuCtxGetCurrent) current_context;
    decltype(&cuCtxPushCurrent) push_context;
    decltype(&cuCtxPopCurrent) pop_context;
    decltype(&cuCtxGetDevice) current_device;
    decltype(&cuLaunchKernelEx) launch_kernel;
};

// Looked up once; the library does not link the driver. Throws Error(NO_DEVICE) where it lacks one of them.
const Driver& driver();

}  // namespace foveal::cuda
