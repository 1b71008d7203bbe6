// Do two strided tensors share memory?
#pragma once

#include "foveal/foveal.h"

namespace foveal {

// Do the same elements lie at the same places, so that a computation element by element may run in place?
// The tensors have the same shape.
bool same_memory(const foveal_tensor& a, const foveal_tensor& b);

// Is there a byte that belongs to both? Strides are those that check_strided() accepts. Exact for all that is laid out
// dimension over dimension, such as interleaved views of one buffer; where strides are so intertwined that the search
// is long, the answer is yes.
bool share_memory(const foveal_tensor& a, const foveal_tensor& b);

}  // namespace foveal
