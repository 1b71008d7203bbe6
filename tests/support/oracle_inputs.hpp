// What the oracles are given, read from the memory of a case.
#pragma once

#include <cstdint>

#include "tests/support/case_data.hpp"
#include "tests/support/oracle.hpp"

namespace foveal_testing {

KeyValueHead read_keys_and_values(CaseData& data, int64_t sequence, int64_t head_k);
RowOptions read_options(CaseData& data, int64_t sequence, const RowId& id);

}  // namespace foveal_testing
