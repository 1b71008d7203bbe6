#include "machine.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <hwy/targets.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <thread>

#include "built_commit.hpp"
#include "nvml.hpp"
#include "tests/support/case_data.hpp"

#if FOVEAL_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace foveal_tool {
namespace {

#if FOVEAL_HAS_CUDA
std::string cuda_version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

void describe_device(Gpu& gpu) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, gpu.ordinal) != cudaSuccess) return;
    gpu.name = properties.name;
    gpu.compute_major = properties.major;
    gpu.compute_minor = properties.minor;
    gpu.multiprocessors = properties.multiProcessorCount;
    gpu.l2_bytes = properties.l2CacheSize;
    gpu.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    gpu.sm_clock_mhz = attribute(cudaDevAttrClockRate, gpu.ordinal) / 1000;
    gpu.memory_clock_mhz = attribute(cudaDevAttrMemoryClockRate, gpu.ordinal) / 1000;
    char bus_id[32] = {};
    if (cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, gpu.ordinal) == cudaSuccess) gpu.pci_bus_id = bus_id;
}

void describe_versions(Gpu& gpu) {
    int version = 0;
    if (cudaRuntimeGetVersion(&version) == cudaSuccess) gpu.runtime_cuda = cuda_version_text(version);
    if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) gpu.driver_cuda = cuda_version_text(version);
    if (const auto nvml = Nvml::open()) gpu.driver = nvml->driver_version();
}
#endif

}  // namespace

Gpu find_gpu() {
    Gpu gpu;
#if FOVEAL_HAS_CUDA
    describe_versions(gpu);
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        const char* reason = error != cudaSuccess ? cudaGetErrorString(error) : "no CUDA device is visible";
        // Without a driver CUDA speaks of one that is too old.
        gpu.why_unusable = gpu.driver_cuda.empty() ? "no NVIDIA driver" : reason;
        return gpu;
    }
    if (cudaGetDevice(&gpu.ordinal) == cudaSuccess) describe_device(gpu);
    if (!foveal_testing::has_sm90_device()) {
        gpu.why_unusable = fmt::format("{} has compute capability {}.{}, the sm90 backend needs 9.0", gpu.name,
                                       gpu.compute_major, gpu.compute_minor);
    } else if (foveal_backend_built(FOVEAL_BACKEND_SM90) == 0) {
        gpu.why_unusable = "the library was built without the sm90 backend";
    }
#else
    gpu.why_unusable = "built without CUDA";
#endif
    return gpu;
}

Cpu find_cpu() {
    Cpu cpu;
    cpu.threads = std::max(1u, std::thread::hardware_concurrency());
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; cpu.name.empty() && std::getline(info, line);) {
        const size_t colon = line.find(": ");
        if (line.starts_with("model name") && colon != std::string::npos) cpu.name = line.substr(colon + 2);
    }
    if (cpu.name.empty()) cpu.name = "unknown CPU";
    // Highway numbers its targets so that a lower bit is a better one.
    for (int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
        const std::string name = hwy::TargetName(rest & -rest);
        if (name != "Unknown") cpu.simd_targets.push_back(name);
    }
    return cpu;
}

const char* built_commit() { return kBuiltCommit; }

std::string utc_date() { return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))); }

}  // namespace foveal_tool
