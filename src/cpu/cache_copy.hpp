// Copies pages, and gathers them, on the CPU.
#pragma once

#include "problem/cache_copy.hpp"

namespace foveal::cpu {

// Throws Error(INVALID_ARGUMENT), naming the entry, for pages and lengths out of range, before it writes anything.
void copy_cache(const CacheCopy& copy);

}  // namespace foveal::cpu
