#include "cuda/driver.hpp"

#include <string>

#include "foveal/types.hpp"

namespace foveal::cuda {
namespace {

template <typename Function>
void find_entry(const char* name, Function& function) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &result), name);
    if (result != cudaDriverEntryPointSuccess) throw Error(FOVEAL_NO_DEVICE, std::string("the driver has no ") + name);
    function = reinterpret_cast<Function>(entry);
}

}  // namespace

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error of ours is not left for the caller's next call
    throw Error(FOVEAL_CUDA_ERROR, std::string(what) + ": " + cudaGetErrorString(status));
}

void check(CUresult status, const char* what) {
    if (status != CUDA_SUCCESS)
        throw Error(FOVEAL_CUDA_ERROR, std::string(what) + ": CUresult " + std::to_string(status));
}

const Driver& driver() {
    static const Driver entries = [] {
        Driver d{};
        find_entry("cuDeviceGet", d.device_of_ordinal);
        find_entry("cuDeviceGetName", d.device_name);
        find_entry("cuTensorMapEncodeTiled", d.encode_tiled);
        find_entry("cuStreamGetCtx", d.stream_context);
        find_entry("cuCtxGetCurrent", d.current_context);
        find_entry("cuCtxPushCurrent", d.push_context);
        find_entry("cuCtxPopCurrent", d.pop_context);
        find_entry("cuCtxGetDevice", d.current_device);
        find_entry("cuLaunchKernelEx", d.launch_kernel);
        return d;
    }();
    return entries;
}

}  // namespace foveal::cuda
