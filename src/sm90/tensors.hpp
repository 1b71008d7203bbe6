// What every sm90 kernel asks of its tensors. Each throws Error(UNSUPPORTED), naming the argument.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"

namespace foveal::sm90 {

// A row is whole vectors of 16 bytes, and no wider than the widest tile.
void check_head_dim(const char* name, int64_t head_dim, int32_t widest);

// What the copy engine can address, of elements of so many bytes.
void check_strides(const char* tensor, const Strides& strides, int64_t element_bytes);
// Of q, k, v and out.
void check_strides(const ForwardProblem& problem);
// The head dimensions of k and v, if they are in e4m3: whole vectors there too.
void check_keys_in_e4m3(const ForwardProblem& problem);

// The same of data.
void check_alignment(const char* tensor, const void* data);
void check_pointers(const ForwardPointers& pointers);

}  // namespace foveal::sm90
