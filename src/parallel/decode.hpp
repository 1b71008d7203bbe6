// Decoding over caches whose keys lie in turn on all ranks (contract 1.15): every rank answers with its own keys, and
// all merge all answers in the order of ranks.
#pragma once

#include "foveal/foveal_parallel.h"
#include "parallel/communicator.hpp"

namespace foveal::parallel {

// Bytes of workspace of a call over so many ranks. Throws Error(INVALID_ARGUMENT or UNSUPPORTED) for what is refused.
uint64_t decode_workspace_bytes(const foveal_forward_args& forward, int32_t ranks);

// Throws Error. Nothing is sent before the arguments have been checked.
void decode(Communicator& communicator, const foveal_parallel_decode_args& args, const foveal_forward_args& forward,
            void* stream);

}  // namespace foveal::parallel
