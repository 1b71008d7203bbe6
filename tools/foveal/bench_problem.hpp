// What bench times: an operation over data of its own, run and verified.
#pragma once

#include <memory>
#include <string>

#include "foveal/foveal.h"
#include "tests/support/tolerance.hpp"

namespace foveal_tool {

// A problem's text in canonical form, and its useful work.
struct ProblemText {
    std::string text;
    double flops = 0;
    double bytes = 0;
};

// Throws CaseError.
ProblemText read_problem(const std::string& text);

class Problem {
   public:
    Problem() = default;
    Problem(const Problem&) = delete;
    Problem& operator=(const Problem&) = delete;
    virtual ~Problem() = default;

    // Throws Failure where the library refuses.
    virtual void run(void* stream) = 0;
    // Judges what the last run wrote.
    virtual foveal_testing::Verdict verify() = 0;
    // The command that verifies it again.
    virtual std::string rerun_line() const = 0;
};

// Inputs are filled, outputs poisoned. Throws Failure where the backend cannot do it.
std::unique_ptr<Problem> make_problem(const std::string& text, foveal_backend backend);

}  // namespace foveal_tool
