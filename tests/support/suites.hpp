// The lists of cases by name: those that prove correctness and those that speed is judged by. No name is in both.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

// A name that no list has; the message has the names that there are.
class UnknownSuite : public CaseError {
   public:
    using CaseError::CaseError;
};

// ---- correctness: each backend has its own version of a list

struct Suite {
    std::string name;
    std::vector<Case> cases;
    std::string left_out;  // what of the full list this backend does not run, and why; "" if nothing
};

// "correctness", "corner", "grid"
const std::vector<std::string>& correctness_suite_names();

// The list for a backend (cpu or sm90). Throws UnknownSuite.
Suite correctness_suite(std::string_view name, foveal_backend backend);

// ---- speed: fixed texts, which results files name

enum class TimedOn { kGpu, kCpu, kEither };

struct SpeedSuite {
    std::string name;
    TimedOn timed_on;
    std::vector<std::string>
        texts;  // canonical: to_text(parse_case(text)) or the same of merge_case.hpp gives them back
};

const std::vector<SpeedSuite>& speed_suites();

// Throws UnknownSuite.
const SpeedSuite& speed_suite(std::string_view name);

}  // namespace foveal_testing
