// What every sm90 kernel asks of the tensors of a forward. Each throws Error(UNSUPPORTED), naming the argument.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// A row is whole vectors of 16 bytes, and no wider than the widest tile.
void check_head_dim(const char* name, int64_t head_dim, int32_t widest);

// Of q, k, v and out: what the copy engine can address.
void check_strides(const ForwardProblem& problem);

// The same of their data.
void check_pointers(const ForwardPointers& pointers);

}  // namespace foveal::sm90
