// foveal: the command-line tool. Each subcommand lies in the file of its name.
#include <fmt/format.h>

#include "case_arguments.hpp"
#include "commands.hpp"
#include "foveal/foveal.h"

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
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? 0 : foveal_tool::kExitUsage;
    }
    return 0;
}

int complain(const std::exception& error, int status) {
    if (*error.what() != '\0') fmt::print(stderr, "foveal: {}\n", error.what());
    return status;
}

}  // namespace

int main(int argc, char** argv) {
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
