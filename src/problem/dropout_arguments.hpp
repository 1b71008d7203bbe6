// Dropout's arguments: what is refused of them, and the mask that they stand for.
#pragma once

#include <cstdint>

#include "foveal/foveal.h"

namespace foveal {

// Throws Error(INVALID_ARGUMENT). 0 <= p < 1, and no more (sequence, head) pairs than 32 bits count.
void check_dropout(float dropout_p, int64_t batch, int64_t heads_q);

// The state of validated arguments: there if and only if weights may be dropped, and aligned. Throws likewise.
const uint64_t* dropout_state_of(const foveal_forward_args& args);

// As a tensor, absent if it is NULL: what is written lies apart from it.
foveal_tensor tensor_of_dropout_state(const uint64_t* state);

// foveal_dropout_mask().
void fill_dropout_mask(int64_t batch, int64_t heads_q, int64_t rows_q, int64_t rows_k, float dropout_p,
                       const uint64_t* state, uint8_t* mask);

}  // namespace foveal
