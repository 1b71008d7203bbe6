// What the sm90 backend can do exactly.
#pragma once

#include "backend/plan.hpp"

namespace foveal::sm90 {

// Throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_supported(const Problem& problem);

// Throws Error(UNSUPPORTED) where a data pointer is not what the copy engine can address.
void check_pointers(const Pointers& pointers);

// The kernel for the problem. Throws as check_supported() does.
ForwardChoice choice_of(const Problem& problem);
// The same for one with a bias alone that turns out not to be aligned to 16 bytes.
ForwardChoice choice_for_unaligned_bias(const Problem& problem);

const char* name_of(ForwardVariant variant);

}  // namespace foveal::sm90
