// The inputs of attention in a safetensors file: q, k, v, and optionally cu_seqlens (or cu_seqlens_q and cu_seqlens_k),
// seqused_q, seqused_k.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "foveal/foveal.h"
#include "safetensors.hpp"

namespace foveal_tool {

// A tensor of this shape without padding; data is NULL.
foveal_tensor packed_tensor(foveal_dtype dtype, const std::vector<int64_t>& shape);

// "F32", ... as the format spells it.
std::string safetensors_dtype(foveal_dtype dtype);

// Shapes and types of the inputs into args; no data pointers. Throws Failure where a tensor is missing, or is there but
// has no meaning.
void describe_inputs(const Safetensors& file, foveal_forward_args& args);

// Where the data pointer of a file's tensor goes. `cu_seqlens` stands for both of its kind: use_lengths_for_both()
// afterwards.
foveal_tensor* argument_named(foveal_forward_args& args, const std::string& name);
void use_lengths_for_both(const Safetensors& file, foveal_forward_args& args);

// The library trusts what stands in cu_seqlens and seqused; a file is not to be trusted. args: described by the file
// and accepted by foveal_supports. Throws Failure.
void check_sequence_lengths(const Safetensors& file, const foveal_forward_args& args);

}  // namespace foveal_tool
