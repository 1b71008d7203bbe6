#include "json_file.hpp"

#include <fmt/format.h>

#include <fstream>

#include "commands.hpp"
#include "machine.hpp"
#include "tests/support/check.hpp"

namespace foveal_tool {

nlohmann::ordered_json file_heading(const std::string& suite, foveal_backend backend) {
    const bool on_gpu = backend == FOVEAL_BACKEND_SM90;
    const Gpu gpu = on_gpu ? find_gpu() : Gpu{};
    const auto or_null = [](const std::string& text) {
        return text.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text);
    };
    nlohmann::ordered_json json;
    json["suite"] = suite;
    json["backend"] = foveal_testing::backend_name(backend);
    json["gpu"] = or_null(gpu.name);
    json["driver"] = or_null(gpu.driver);
    json["cuda"] = or_null(gpu.runtime_cuda);
    json["cpu"] = find_cpu().name;
    json["commit"] = built_commit();
    json["date"] = utc_date();
    return json;
}

void require_writable(const std::string& path) {
    if (!std::ofstream(path, std::ios::app)) throw Failure(fmt::format("cannot write {}", path));
}

void write_json(const std::string& path, const nlohmann::ordered_json& json) {
    std::ofstream file(path, std::ios::trunc);
    file << json.dump(2) << '\n';
    file.close();
    if (!file) throw Failure(fmt::format("cannot write {}", path));
}

}  // namespace foveal_tool
