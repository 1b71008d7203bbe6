// The gradient of a case, as a line of text: "backward", the tokens of case.hpp, and
//
//   token        meaning                                                                   default
//   dlse         a gradient comes in through the log-sum-exp too                           none
//   dbias_f32    the bias's gradient is asked in f32                                       in the bias's type
//
// e.g. "backward b2 sq113 sk203 hq32 hk8 d128 bf16 causal dlse". Every gradient that the case has is asked.
#pragma once

#include <string>
#include <string_view>

#include "tests/support/case.hpp"

namespace foveal_testing {

struct BackwardCase {
    Case forward;  // its lse is asked for
    bool dlse = false;
    bool dbias_f32 = false;

    bool operator==(const BackwardCase&) const = default;
    foveal_dtype dbias_dtype() const { return dbias_f32 ? foveal_dtype{FOVEAL_F32} : forward.bias_dtype(); }
};

// Is it the text of a gradient?
bool is_backward_text(std::string_view text);

// Throws CaseError.
BackwardCase parse_backward_case(std::string_view text);
// Canonical text; parse_backward_case(to_text(c)) == c.
std::string to_text(const BackwardCase& c);

}  // namespace foveal_testing
