// The subcommands. Each adds itself to the command line; what it does runs after the whole line has been parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <stdexcept>

namespace foveal_tool {

// Exit statuses: 0 for success, and
inline constexpr int kExitFailure = 1;  // a wrong result, an unsupported problem, no device, an unreadable file
inline constexpr int kExitUsage = 2;    // the command line makes no sense

// Ends the command: kExitUsage with this message.
class UsageError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

// Ends the command: kExitFailure with this message. "" if all has been said.
class Failure : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

void add_info(CLI::App& app);
void add_plan(CLI::App& app);
void add_check(CLI::App& app);
void add_bench(CLI::App& app);
void add_run(CLI::App& app);
void add_case(CLI::App& app);
void add_suite(CLI::App& app);

}  // namespace foveal_tool
