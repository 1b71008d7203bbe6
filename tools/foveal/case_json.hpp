// A case for other programs: every field by name, and the work that the case is.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/cache_case.hpp"
#include "tests/support/case.hpp"
#include "tests/support/merge_case.hpp"

namespace foveal_tool {

// {"operation": "forward", "text", fields…, "options", "visible_pairs", "flops", "bytes"}. "options" names the fields
// beyond shape and type that are not as in a plain case: whoever computes a case must know each of them.
nlohmann::ordered_json case_json(const foveal_testing::Case& c);

// {"operation": "append", "copy_pages" or "gather", "text", fields…, "flops", "bytes"}
nlohmann::ordered_json case_json(const foveal_testing::CacheCase& c);

// {"operation": "merge", "text", fields…, "flops", "bytes"}
nlohmann::ordered_json case_json(const foveal_testing::MergeCase& c);

}  // namespace foveal_tool
