#include "nvml.hpp"

#include <dlfcn.h>

#include <chrono>
#include <utility>

#include "statistics.hpp"

namespace foveal_tool {
namespace {

constexpr int kClockSm = 1;  // NVML_CLOCK_SM
constexpr auto kInterval = std::chrono::milliseconds(5);

template <class Function>
bool find_symbol(void* library, const char* name, Function*& function) {
    function = reinterpret_cast<Function*>(dlsym(library, name));
    return function != nullptr;
}

}  // namespace

std::shared_ptr<const Nvml> Nvml::open(const char* library) {
    std::shared_ptr<Nvml> nvml(new Nvml);
    if (!nvml->load(library)) return nullptr;
    return nvml;
}

bool Nvml::load(const char* library) {
    library_ = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (library_ == nullptr) return false;
    const bool complete = find_symbol(library_, "nvmlInit_v2", init_) &&
                          find_symbol(library_, "nvmlShutdown", shutdown_) &&
                          find_symbol(library_, "nvmlSystemGetDriverVersion", driver_version_) &&
                          find_symbol(library_, "nvmlDeviceGetHandleByPciBusId_v2", device_by_pci_bus_id_) &&
                          find_symbol(library_, "nvmlDeviceGetClockInfo", clock_info_) &&
                          find_symbol(library_, "nvmlDeviceGetPowerUsage", power_usage_);
    started_ = complete && init_() == 0;
    return started_;
}

Nvml::~Nvml() {
    if (started_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
}

std::string Nvml::driver_version() const {
    char text[96] = {};
    return driver_version_(text, sizeof text - 1) == 0 ? text : "";
}

std::optional<Nvml::Reading> Nvml::read(const std::string& pci_bus_id) const {
    Device device = nullptr;
    unsigned mhz = 0, milliwatts = 0;
    if (device_by_pci_bus_id_(pci_bus_id.c_str(), &device) != 0) return std::nullopt;
    if (clock_info_(device, kClockSm, &mhz) != 0 || power_usage_(device, &milliwatts) != 0) return std::nullopt;
    return Reading{static_cast<double>(mhz), milliwatts / 1000.0};
}

NvmlSampler::NvmlSampler(std::shared_ptr<const Nvml> nvml, std::string pci_bus_id)
    : nvml_(std::move(nvml)), pci_bus_id_(std::move(pci_bus_id)) {
    if (!nvml_) return;
    thread_ = std::thread([this] {
        do {
            if (const auto reading = nvml_->read(pci_bus_id_)) {
                sm_mhz_.push_back(reading->sm_mhz);
                watts_.push_back(reading->watts);
            }
            std::this_thread::sleep_for(kInterval);
        } while (!stopping_);
    });
}

std::optional<Nvml::Reading> NvmlSampler::stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
    if (sm_mhz_.empty()) return std::nullopt;
    return Nvml::Reading{median(sm_mhz_), median(watts_)};
}

}  // namespace foveal_tool
