// foveal: the command-line tool. Each subcommand lies in the file of its name.
#include <fmt/format.h>

#include <csignal>
#include <sstream>

#include "case_arguments.hpp"
#include "commands.hpp"
#include "foveal/foveal.h"
#include "standard_output.hpp"

namespace {

constexpr const char* kDescription =
    "foveal: softmax(scale * Q * K^T, masked) * V as one fused kernel, on Hopper GPUs and on CPUs.";

constexpr const char* kFooter =
    "Examples:\n"
    "  foveal info\n"
    "  foveal check b2 sq113 sk203 hq32 hk8 d128 bf16 causal\n"
    "  foveal bench --suite seed --json seed.json\n"
    "`foveal CMD --help` tells more; `foveal check --help` how a CASE is written.\n"
    "Exit status: 0 success, 1 failure, 2 a command line that makes no sense.";

// A word in the place of a command that is none, such as a misspelt one.
[[noreturn]] void refuse_command(const CLI::App& app) {
    std::string commands;
    for (const CLI::App* command : app.get_subcommands({}))
        commands += (commands.empty() ? "" : ", ") + command->get_name();
    throw foveal_tool::UsageError(
        fmt::format("'{}' is no command; there are {} (`foveal --help`)", app.remaining().front(), commands));
}

// What CLI11 says: help and version, which are no error, or what is wrong. Returns the exit status.
int tell(const CLI::App& app, const CLI::ParseError& error) {
    std::ostringstream out, complaint;
    const bool is_error = app.exit(error, out, complaint) != 0;
    foveal_tool::print_text(out.str());
    fmt::print(stderr, "{}", complaint.str());
    return is_error ? foveal_tool::kExitUsage : 0;
}

int run(int argc, char** argv) {
    CLI::App app(kDescription, "foveal");
    app.set_version_flag("--version", std::string("foveal ") + foveal_version());
    app.footer(kFooter);
    app.require_subcommand(1);
    foveal_tool::add_info(app);
    foveal_tool::add_plan(app);
    foveal_tool::add_check(app);
    foveal_tool::add_bench(app);
    foveal_tool::add_run(app);
    foveal_tool::add_case(app);
    foveal_tool::add_suite(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::RequiredError& error) {
        if (app.get_subcommands().empty() && app.remaining_size() > 0) refuse_command(app);
        return tell(app, error);
    } catch (const CLI::ParseError& error) {
        return tell(app, error);
    }
    return 0;
}

int complain(const std::exception& error, int status) {
    if (*error.what() != '\0') fmt::print(stderr, "foveal: {}\n", error.what());
    return status;
}

int run_and_complain(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const foveal_tool::UsageError& error) {
        return complain(error, foveal_tool::kExitUsage);
    } catch (const foveal_testing::CaseError& error) {
        return complain(error, foveal_tool::kExitUsage);
    } catch (const std::exception& error) {
        return complain(error, foveal_tool::kExitFailure);
    }
}

}  // namespace

int main(int argc, char** argv) {
    foveal_tool::occupy_standard_descriptors();
    std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is an error of its writer, who then cleans up
    const int status = run_and_complain(argc, argv);
    const std::string why_not_printed = foveal_tool::finish_standard_output();
    if (why_not_printed.empty()) return status;
    fmt::print(stderr, "foveal: {}\n", why_not_printed);
    return status == 0 ? foveal_tool::kExitFailure : status;
}
