// Do two strided tensors share memory?
#pragma once

#include <cstdint>

#include "foveal/foveal.h"
#include "problem/argument.hpp"

namespace foveal {

// Do the same elements lie at the same places, so that a computation element by element may run in place?
// The tensors have the same shape.
bool same_memory(const foveal_tensor& a, const foveal_tensor& b);

// Is there a byte that belongs to both? Strides are those that check_strided() accepts. Exact for all that is laid out
// dimension over dimension, such as interleaved views of one buffer; where strides are so intertwined that the search
// is long, the answer is yes.
bool share_memory(const foveal_tensor& a, const foveal_tensor& b);

// A checked argument with its first and last byte, so that one of several is held against many others at little cost.
struct Placed {
    Argument argument;
    uintptr_t first = 1;
    uintptr_t last = 0;  // before `first` where the tensor is absent or has no element

    explicit Placed(const Argument& a);
};

// What is written must lie apart from what is read and from what else is written. Throws Error(INVALID_ARGUMENT) naming
// both arguments.
void require_apart(const Placed& written, const Placed& other);
// The same, but that a result may replace, element by element, the argument that it is computed from.
void require_apart_or_same(const Placed& written, const Placed& read);

}  // namespace foveal
