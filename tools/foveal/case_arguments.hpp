// CASE... and --suite on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/case.hpp"
#include "tests/support/suites.hpp"

namespace foveal_tool {

// How a case is written, for the help texts.
extern const char* const kCaseHelp;

struct CaseArguments {
    std::vector<std::string> words;
    std::string suite;
};

// Adds CASE... and, if default_suite is given, --suite.
void add_case_arguments(CLI::App& command, CaseArguments& arguments, std::optional<std::string> default_suite = {});

// An argument with blanks is a case of its own; neighbouring arguments without blanks are one case together.
std::vector<foveal_testing::Case> parse_cases(const std::vector<std::string>& words);

// The cases named, or else those of the suite. A list of cases is called "cases".
foveal_testing::Suite chosen_cases(const CaseArguments& arguments, foveal_backend backend);

}  // namespace foveal_tool
