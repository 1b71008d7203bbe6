// foveal suite: the lists of cases, by name.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend_choice.hpp"
#include "commands.hpp"
#include "standard_output.hpp"
#include "tests/support/check.hpp"
#include "tests/support/suites.hpp"

namespace foveal_tool {
namespace {

using foveal_testing::SpeedSuite;
using foveal_testing::TimedOn;
using Json = nlohmann::ordered_json;

struct SuiteOptions {
    std::string name;  // "": the names themselves
    std::string backend;
    bool json = false;
};

const char* timed_on_name(TimedOn on) { return on == TimedOn::kEither ? "any" : on == TimedOn::kCpu ? "cpu" : "sm90"; }

bool is_correctness(const std::string& name) {
    const auto& names = foveal_testing::correctness_suite_names();
    return std::find(names.begin(), names.end(), name) != names.end();
}

Json names_json() {
    Json list = Json::array();
    for (const SpeedSuite& suite : foveal_testing::speed_suites())
        list.push_back({{"suite", suite.name}, {"kind", "speed"}, {"backend", timed_on_name(suite.timed_on)}});
    for (const std::string& name : foveal_testing::correctness_suite_names())
        list.push_back({{"suite", name}, {"kind", "correctness"}, {"backend", "any"}});
    return list;
}

Json correctness_json(const SuiteOptions& options) {
    const foveal_backend backend = choose_backend_to_plan(options.backend).backend;
    const foveal_testing::Suite suite = foveal_testing::correctness_suite(options.name, backend);
    Json json = {{"suite", suite.name},
                 {"kind", "correctness"},
                 {"backend", foveal_testing::backend_name(backend)},
                 {"left_out", suite.left_out}};
    json["cases"] = Json::array();
    for (const foveal_testing::Case& c : suite.cases) json["cases"].push_back(to_text(c));
    return json;
}

Json speed_json(const std::string& name) {
    const SpeedSuite& suite = foveal_testing::speed_suite(name);
    return {{"suite", suite.name},
            {"kind", "speed"},
            {"backend", timed_on_name(suite.timed_on)},
            {"left_out", ""},
            {"cases", suite.texts}};
}

Json suite_json(const SuiteOptions& options) {
    return is_correctness(options.name) ? correctness_json(options) : speed_json(options.name);
}

std::string all_names() {
    std::string text;
    for (const Json& entry : names_json()) text += (text.empty() ? "" : ", ") + entry["suite"].get<std::string>();
    return text;
}

void list(const SuiteOptions& options) {
    Json json = Json::array();
    try {
        json = options.name.empty() ? names_json() : suite_json(options);
    } catch (const foveal_testing::UnknownSuite&) {
        throw UsageError(fmt::format("no suite is called '{}'; there are {}", options.name, all_names()));
    }
    if (options.json) {
        say("{}\n", json.dump(2));
    } else if (options.name.empty()) {
        for (const Json& entry : json)
            say("{:<12} {:<12} {}\n", entry["suite"].get<std::string>(), entry["kind"].get<std::string>(),
                entry["backend"].get<std::string>());
    } else {
        for (const Json& text : json["cases"]) say("{}\n", text.get<std::string>());
    }
}

}  // namespace

void add_suite(CLI::App& app) {
    CLI::App* command = app.add_subcommand("suite", "Print the names of the suites, or the cases of one");
    command->footer(
        "Speed suites are what bench times, the same lists everywhere; each names the backend that it is for.\n"
        "Correctness suites are what check proves; their lists differ by backend.\n"
        "Examples:\n  foveal suite\n  foveal suite seed --json");
    const auto options = std::make_shared<SuiteOptions>();
    command->add_option("NAME", options->name, "One suite: print its cases")->type_name("");
    command->add_flag("--json", options->json, "As JSON");
    add_backend_option(*command, options->backend);
    command->callback([options] { list(*options); });
}

}  // namespace foveal_tool
