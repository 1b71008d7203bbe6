// What this machine computes with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace foveal_tool {

struct Gpu {
    std::string why_unusable;  // "" if the sm90 backend can use it
    int ordinal = 0;           // the current CUDA device
    std::string name;          // "" if there is none at all
    std::string pci_bus_id;
    int compute_major = 0, compute_minor = 0;
    int multiprocessors = 0;
    int sm_clock_mhz = 0, memory_clock_mhz = 0;  // the highest
    int64_t l2_bytes = 0, memory_bytes = 0;
    std::string driver;        // of the kernel module, "" if NVML does not say
    std::string driver_cuda;   // the newest CUDA that the driver runs
    std::string runtime_cuda;  // the CUDA that this tool is built with

    bool usable() const { return why_unusable.empty(); }
};

Gpu find_gpu();

struct Cpu {
    std::string name;
    unsigned threads = 1;
    std::vector<std::string> simd_targets;  // of Highway, best first; the library picks the first that it has code for
};

Cpu find_cpu();

// The commit that was built, "-dirty" behind it if files had been changed; "unknown" outside a git checkout.
const char* built_commit();

// Now, UTC: "2026-11-23T20:15:04Z"
std::string utc_date();

}  // namespace foveal_tool
