// foveal case: what the text of a case means, and how much work it is.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "case_arguments.hpp"
#include "case_json.hpp"
#include "commands.hpp"
#include "standard_output.hpp"

namespace foveal_tool {
namespace {

struct CaseOptions {
    CaseArguments cases;
    bool json = false;
};

nlohmann::ordered_json json_of(const std::string& text) {
    if (foveal_testing::is_merge_text(text)) return case_json(foveal_testing::parse_merge_case(text));
    if (foveal_testing::is_cache_text(text)) return case_json(foveal_testing::parse_cache_case(text));
    return case_json(foveal_testing::parse_case(text));
}

void describe(const CaseOptions& options) {
    const std::vector<std::string> texts = case_texts(options.cases.words);
    if (texts.size() != 1) throw UsageError(fmt::format("one CASE, not {}", texts.size()));
    const nlohmann::ordered_json json = json_of(texts.front());
    if (options.json) {
        say("{}\n", json.dump(2));
        return;
    }
    for (const auto& [name, value] : json.items()) say("{:<14} {}\n", name, value.dump());
}

}  // namespace

void add_case(CLI::App& app) {
    CLI::App* command = app.add_subcommand("case", "Print every field of a case, its FLOPs and its bytes");
    command->footer(
        std::string(kCaseHelp) + "\n" + kMergeHelp +
        "\n\nbytes: each used input row read once, each output row written once. options: the fields beyond shape and\n"
        "type that are not as in a plain case.\n"
        "Example:\n  foveal case --json b2 sq113 sk203 hq32 hk8 d128 bf16 causal");
    const auto options = std::make_shared<CaseOptions>();
    add_case_arguments(*command, options->cases);
    command->add_flag("--json", options->json, "As one JSON object");
    command->callback([options] { describe(*options); });
}

}  // namespace foveal_tool
