// Clock and power of a GPU from NVML, which is loaded at run time: it comes with the driver and may be missing.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace foveal_tool {

class Nvml {
   public:
    // NULL where the library is missing or does not start.
    static std::shared_ptr<const Nvml> open(const char* library = "libnvidia-ml.so.1");
    ~Nvml();
    Nvml(const Nvml&) = delete;
    Nvml& operator=(const Nvml&) = delete;

    std::string driver_version() const;  // "" if NVML does not say

    struct Reading {
        double sm_mhz = 0;
        double watts = 0;
    };
    // Of the GPU with this PCI bus id; nothing where NVML refuses.
    std::optional<Reading> read(const std::string& pci_bus_id) const;

   private:
    Nvml() = default;
    bool load(const char* library);

    // The part of NVML's ABI that is used here (nvml.h); statuses are ints, 0 is success.
    using Device = void*;
    void* library_ = nullptr;
    bool started_ = false;
    int (*init_)() = nullptr;
    int (*shutdown_)() = nullptr;
    int (*driver_version_)(char* version, unsigned length) = nullptr;
    int (*device_by_pci_bus_id_)(const char* id, Device* device) = nullptr;
    int (*clock_info_)(Device device, int clock_type, unsigned* mhz) = nullptr;
    int (*power_usage_)(Device device, unsigned* milliwatts) = nullptr;
};

// Reads a GPU every few milliseconds from construction until stop().
class NvmlSampler {
   public:
    NvmlSampler(std::shared_ptr<const Nvml> nvml, std::string pci_bus_id);
    ~NvmlSampler() { stop(); }
    NvmlSampler(const NvmlSampler&) = delete;
    NvmlSampler& operator=(const NvmlSampler&) = delete;

    // The medians of what was read; nothing if NVML gave nothing.
    std::optional<Nvml::Reading> stop();

   private:
    std::shared_ptr<const Nvml> nvml_;
    std::string pci_bus_id_;
    std::atomic<bool> stopping_{false};
    std::vector<double> sm_mhz_, watts_;
    std::thread thread_;
};

}  // namespace foveal_tool
