// Which element types of q, k, v and out go together, and the descales of those in e4m3 (contract 1.14).
#pragma once

#include <cstdint>

#include "foveal/foveal.h"
#include "problem/argument.hpp"
#include "problem/forward.hpp"

namespace foveal {

// Throws Error(INVALID_ARGUMENT) naming the argument, as all of these do. Ranks are known ones.
void check_element_types(const foveal_forward_args& args);

// q's type or f32; of e4m3 q: bf16, f16 or f32.
void require_bias_dtype(const Argument& bias, const foveal_forward_args& args);

// f32 [batch, heads_k], or of k and v of rank 4 a value for each of their rows; beside tensors in e4m3 alone.
void check_descales(const foveal_forward_args& args, int64_t batch, int64_t heads_k);

// The types and the descales' strides of arguments that are checked.
void take_element_types(const foveal_forward_args& args, ForwardProblem& problem);

}  // namespace foveal
