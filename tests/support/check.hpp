// Runs a case on a backend and judges the result.
#pragma once

#include <functional>
#include <string>

#include "tests/support/case_data.hpp"
#include "tests/support/tolerance.hpp"

namespace foveal_testing {

struct CheckResult {
    enum class Status { kPass, kFail, kUnsupported };
    Status status = Status::kFail;
    std::string message;  // kFail: why, with the line that reruns it; kUnsupported: what the backend said
    Verdict verdict;      // of kPass, and of kFail if there was a result to judge

    bool passed() const { return status == Status::kPass; }
};

// foveal_forward, or what a test puts in its place.
using Forward = std::function<foveal_status(const foveal_forward_args&)>;
foveal_status call_forward(const foveal_forward_args& args);

// Allocates, fills, runs once and verifies. backend: cpu or sm90.
CheckResult check_case(const Case& c, foveal_backend backend, const Forward& forward = call_forward);

// Judges what data's outputs hold after a run of its args. Large cases are checked on sampled rows and scanned whole.
Verdict verify(CaseData& data);

// The command that reruns a case.
std::string rerun_line(const Case& c, foveal_backend backend);
const char* backend_name(foveal_backend backend);  // "cpu", "sm90", "auto"

}  // namespace foveal_testing
