// What the sm90 backend's backward can do exactly, and with which kernels.
#pragma once

#include <cstdint>

#include "problem/backward.hpp"
#include "sm90/backward/tiles.hpp"

namespace foveal::sm90 {

// Throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_backward_supported(const BackwardProblem& problem);

// Throws Error(UNSUPPORTED) where a data pointer is not what the copy engine, or a vector of 16 bytes, can address.
void check_pointers(const BackwardPointers& pointers);

// Of a supported problem: the index into kBackwardTiles, and what is asked of the kernel.
int32_t tile_index_of(const BackwardProblem& problem);
BackwardVariant variant_of(const BackwardProblem& problem);

}  // namespace foveal::sm90
