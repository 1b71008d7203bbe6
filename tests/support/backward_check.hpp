// Runs a gradient on a backend and judges the result.
#pragma once

#include <functional>
#include <string>

#include "tests/support/backward_case.hpp"
#include "tests/support/backward_data.hpp"
#include "tests/support/check.hpp"

namespace foveal_testing {

// foveal_backward, or what a test puts in its place.
using Backward = std::function<foveal_status(const foveal_backward_args&)>;
foveal_status call_backward(const foveal_backward_args& args);

// Allocates, fills, runs forward and backward once and verifies. backend: cpu or sm90.
CheckResult check_backward(const BackwardCase& c, foveal_backend backend, const Backward& backward = call_backward);

// Judges what data's gradients hold after a run of its args. Of large cases rows and keys are sampled, and then the
// gradients of sinks, bias and slopes, which are sums over all of them, are not judged.
Verdict verify_backward(BackwardData& data, foveal_backend backend);

// The command that reruns a case.
std::string rerun_line(const BackwardCase& c, foveal_backend backend);

}  // namespace foveal_testing
