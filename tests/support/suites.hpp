// The lists of cases that tests, `foveal check --suite` and `foveal bench --suite` run.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

struct Suite {
    std::string name;
    std::vector<Case> cases;
    std::string left_out;  // what of the full list this backend does not run, and why; "" if nothing
};

// "correctness", "corner" and "grid" are for checking, "seed", "single", "mha" and "d64" for timing.
const std::vector<std::string>& suite_names();

// The list for a backend (cpu or sm90): the CPU gets reduced lengths. Throws CaseError for an unknown name.
Suite suite(std::string_view name, foveal_backend backend);

}  // namespace foveal_testing
