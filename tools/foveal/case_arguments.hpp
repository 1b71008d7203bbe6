// CASE... and --suite on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_tool {

// How a case is written, for the help texts.
extern const char* const kCaseHelp;
extern const char* const kMergeHelp;  // for commands that know merges

struct CaseArguments {
    std::vector<std::string> words;
    std::string suite;  // "": none was named
};

// Adds CASE..., without which the command line is refused.
void add_case_arguments(CLI::App& command, CaseArguments& arguments);
// Adds CASE... and --suite NAME, either of which may be given.
void add_case_or_suite_arguments(CLI::App& command, CaseArguments& arguments,
                                 const std::vector<std::string>& suite_names);

// An argument with blanks is a case of its own; neighbouring arguments without blanks are one case together.
std::vector<std::string> case_texts(const std::vector<std::string>& words);
std::vector<foveal_testing::Case> parse_cases(const std::vector<std::string>& words);

}  // namespace foveal_tool
