// foveal plan: which kernel, tile, grid and order of work a problem gets.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "backend_choice.hpp"
#include "case_arguments.hpp"
#include "commands.hpp"
#include "json_file.hpp"
#include "machine.hpp"
#include "standard_output.hpp"
#include "tests/support/case_data.hpp"
#include "tests/support/check.hpp"

namespace foveal_tool {
namespace {

constexpr int32_t kGenericDevice = -1;

struct PlanOptions {
    CaseArguments cases;
    std::string backend;
    std::optional<std::string> json;
};

[[noreturn]] void fail(foveal_status status) {
    throw Failure(fmt::format("{}: {}", foveal_status_name(status), foveal_last_error()));
}

std::string describe(const foveal_testing::Case& c, foveal_backend backend, int32_t device) {
    const foveal_forward_args args = foveal_testing::shape_args(c, backend);
    foveal_plan* raw = nullptr;
    if (const foveal_status status = foveal_plan_create(&args, device, &raw)) fail(status);
    const std::unique_ptr<foveal_plan, decltype(&foveal_plan_destroy)> plan(raw, foveal_plan_destroy);
    size_t needed = 0;
    if (const foveal_status status = foveal_plan_describe(plan.get(), nullptr, 0, &needed)) fail(status);
    std::string text(needed, '\0');
    if (const foveal_status status = foveal_plan_describe(plan.get(), text.data(), text.size(), nullptr)) fail(status);
    text.resize(text.find('\0'));
    while (text.ends_with('\n')) text.pop_back();
    return text;
}

// The lines of a plan's text by their first words; what continues a line begins with blanks.
nlohmann::ordered_json lines_by_name(const std::string& text) {
    nlohmann::ordered_json json = nlohmann::ordered_json::object();
    std::istringstream lines(text);
    std::string line, name;
    while (std::getline(lines, line)) {
        const size_t name_end = line.find(' ');
        const size_t value = std::min(line.find_first_not_of(' ', name_end), line.size());
        if (name_end > 0) {
            name = line.substr(0, name_end);
            json[name] = line.substr(value);
        } else {
            json[name] = json[name].get<std::string>() + "\n" + line.substr(value);
        }
    }
    return json;
}

void plan(const PlanOptions& options) {
    const std::vector<foveal_testing::Case> cases = parse_cases(options.cases.words);
    const BackendChoice choice = choose_backend_to_plan(options.backend);
    const Gpu gpu = choice.backend == FOVEAL_BACKEND_SM90 ? find_gpu() : Gpu{};
    const int32_t device = gpu.usable() ? gpu.ordinal : kGenericDevice;
    JsonFile file(options.json);
    nlohmann::ordered_json plans = nlohmann::ordered_json::array();
    say("backend: {}\n", choice.description);
    for (const foveal_testing::Case& c : cases) {
        const std::string text = describe(c, choice.backend, device);
        say("\n{}\n{}\n", foveal_testing::to_text(c), text);
        plans.push_back({{"case", foveal_testing::to_text(c)}, {"plan", lines_by_name(text)}});
    }
    file.write({{"backend", foveal_testing::backend_name(choice.backend)},
                {"planned_for", choice.description},
                {"plans", std::move(plans)}});
}

}  // namespace

void add_plan(CLI::App& app) {
    CLI::App* command = app.add_subcommand("plan", "Print the plan of a problem: kernel, tile, grid, predicted bound");
    command->footer(std::string(kCaseHelp) +
                    "\n\nNeeds no GPU: without one, --backend sm90 plans for a generic H200.\n"
                    "Example:\n  foveal plan --backend sm90 b128 s1024 hq32 hk8 d128 bf16 causal");
    const auto options = std::make_shared<PlanOptions>();
    add_case_arguments(*command, options->cases);
    add_backend_option(*command, options->backend);
    add_json_option(*command, options->json, "the plans, line by line,");
    command->callback([options] { plan(*options); });
}

}  // namespace foveal_tool
