// Which weights dropout keeps, written down as the contract states it (1.16). Shares nothing with the library.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

// Philox4x32-10 as Random123 has it: counter and key to four words.
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Of dropout_p, to the nearest multiple of 2^-16: what is dropped of 65536 numbers.
int64_t dropped_of_65536(float dropout_p);
// What a kept weight is multiplied by.
double dropout_factor(float dropout_p);

// 1 where a key of query `row` is kept, else 0, [len_k].
std::vector<float> kept_keys(const Case& c, int64_t sequence, int64_t head_q, int64_t row, int64_t len_k);

}  // namespace foveal_testing
