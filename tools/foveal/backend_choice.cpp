#include "backend_choice.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "commands.hpp"
#include "machine.hpp"

namespace foveal_tool {
namespace {

const std::array<std::string, 3> kNames = {"cpu", "sm90", "auto"};

// What is asked for, and "" or, for messages, that the environment asks.
struct Asked {
    std::string name, by;
};

Asked asked(const std::string& name) {
    if (!name.empty()) return {name, ""};
    const char* variable = std::getenv("FOVEAL_BACKEND");
    if (variable == nullptr || *variable == '\0') return {"auto", ""};
    if (std::find(kNames.begin(), kNames.end(), variable) == kNames.end())
        throw UsageError(
            fmt::format("the environment variable FOVEAL_BACKEND is \"{}\"; known are cpu, sm90 and auto", variable));
    return {variable, fmt::format(" (the environment variable FOVEAL_BACKEND is \"{}\")", variable)};
}

}  // namespace

void add_backend_option(CLI::App& command, std::string& name) {
    command
        .add_option("--backend", name,
                    "cpu, sm90, or auto: sm90 if there is a Hopper GPU, else cpu (default: what the environment "
                    "variable FOVEAL_BACKEND says, else auto)")
        ->check(CLI::IsMember(kNames))
        ->type_name("NAME");
}

BackendChoice choose_backend_to_plan(const std::string& given) {
    const std::string name = asked(given).name;
    if (name == "cpu") return {FOVEAL_BACKEND_CPU, "cpu"};
    const Gpu gpu = find_gpu();
    if (gpu.usable()) return {FOVEAL_BACKEND_SM90, "sm90 on " + gpu.name};
    if (name == "auto") return {FOVEAL_BACKEND_CPU, fmt::format("cpu (auto: {})", gpu.why_unusable)};
    return {FOVEAL_BACKEND_SM90, fmt::format("sm90, for a generic H200 ({})", gpu.why_unusable)};
}

BackendChoice choose_backend(const std::string& given) {
    const auto [name, by] = asked(given);
    if (name == "sm90") {
        const Gpu gpu = find_gpu();
        if (!gpu.usable()) throw Failure(fmt::format("the sm90 backend cannot run here: {}{}", gpu.why_unusable, by));
    }
    return choose_backend_to_plan(name);
}

}  // namespace foveal_tool
