#include "json_file.hpp"

#include <array>
#include <span>

#include "machine.hpp"
#include "standard_output.hpp"
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

void add_json_option(CLI::App& command, std::optional<std::string>& path, const std::string& what) {
    command
        .add_option("--json", path,
                    "Write " + what + " to this file; -: to standard output, and all text to standard error")
        ->type_name("FILE");
}

JsonFile::JsonFile(const std::optional<std::string>& path) {
    if (!path) return;
    file_.emplace(*path);
    if (file_->is_standard_output()) reserve_standard_output_for_results();
}

void JsonFile::write(const nlohmann::ordered_json& json) {
    if (!file_) return;
    const std::string text = json.dump(2) + "\n";
    file_->write(std::array{std::as_bytes(std::span(text))});
}

}  // namespace foveal_tool
