// What the CPU backend checks of lengths before anything is written; the kernels trust them (contract 1.1).
#pragma once

#include <cstdint>
#include <string>

namespace foveal::cpu {

// Throws Error(INVALID_ARGUMENT): `name`[index] is value; requirement.
[[noreturn]] void refuse_entry(const std::string& name, int64_t index, int64_t value, const std::string& requirement);

// "it must lie in [least, most]"
std::string range_of(int64_t least, int64_t most);

// ends, [batch + 1], must ascend from 0 to `rows`, which the caller knows as `rows_name`. Null: none.
void check_ends(const int32_t* ends, int64_t batch, int64_t rows, const char* name, const char* rows_name);

}  // namespace foveal::cpu
