#include "backend_choice.hpp"

#include <fmt/format.h>

#include "commands.hpp"
#include "machine.hpp"

namespace foveal_tool {

void add_backend_option(CLI::App& command, std::string& name) {
    name = "auto";
    command.add_option("--backend", name, "cpu, sm90, or auto: sm90 if there is a Hopper GPU, else cpu")
        ->check(CLI::IsMember({"cpu", "sm90", "auto"}))
        ->capture_default_str()
        ->type_name("NAME")
        ->envname("FOVEAL_BACKEND");
}

BackendChoice choose_backend_to_plan(const std::string& name) {
    if (name == "cpu") return {FOVEAL_BACKEND_CPU, "cpu"};
    const Gpu gpu = find_gpu();
    if (gpu.usable()) return {FOVEAL_BACKEND_SM90, "sm90 on " + gpu.name};
    if (name == "auto") return {FOVEAL_BACKEND_CPU, fmt::format("cpu (auto: {})", gpu.why_unusable)};
    return {FOVEAL_BACKEND_SM90, fmt::format("sm90, for a generic H200 ({})", gpu.why_unusable)};
}

BackendChoice choose_backend(const std::string& name) {
    if (name == "sm90") {
        const Gpu gpu = find_gpu();
        if (!gpu.usable()) throw Failure("the sm90 backend cannot run here: " + gpu.why_unusable);
    }
    return choose_backend_to_plan(name);
}

}  // namespace foveal_tool
