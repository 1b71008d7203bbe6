#include "cuda/kernel_table.hpp"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/driver.hpp"
#include "foveal/types.hpp"

namespace foveal::cuda {

CUfunction load(const Kernel& kernel) {
    if (kernel.symbol == nullptr) throw Error(FOVEAL_INTERNAL_ERROR, "the plan names a kernel that there is not");
    const void* symbol = kernel.symbol();
    if (kernel.shared_bytes > 0)
        check(cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes),
              "cudaFuncSetAttribute");
    CUfunction function = nullptr;
    check(cudaGetFuncBySymbol(&function, symbol), "cudaGetFuncBySymbol");
    return function;
}

void launch(CUfunction function, const LaunchShape& shape, void* stream, void** arguments, const char* name) {
    CUlaunchConfig config{};
    config.gridDimX = static_cast<unsigned>(shape.grid);
    config.blockDimX = static_cast<unsigned>(shape.threads);
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = static_cast<unsigned>(shape.shared_bytes);
    config.hStream = static_cast<CUstream>(stream);
    CUlaunchAttribute overlap{};
    overlap.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    overlap.value.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = shape.overlaps_kernel_before ? 1 : 0;
    const CUresult status = driver().launch_kernel(&config, function, arguments, nullptr);
    if (status != CUDA_SUCCESS) check(status, (std::string("launch of the ") + name).c_str());
}

}  // namespace foveal::cuda
