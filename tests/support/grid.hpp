// The grid: cases in which, of any two options, every pair of values that can go together occurs.
#pragma once

#include <vector>

#include "tests/support/backward_case.hpp"
#include "tests/support/case.hpp"

namespace foveal_testing {

// Several such coverings, the same on every machine. sm90: at least 5000 cases. cpu: at least 1500, without the most
// expensive pairs, and with f32 and odd head dimensions (of one or three channels the error norm is chance).
std::vector<Case> grid(foveal_backend backend);

// The same of gradients, of smaller problems. sm90: at least 4000 cases. cpu: at least 900.
std::vector<BackwardCase> backward_grid(foveal_backend backend);

}  // namespace foveal_testing
