// Merging of partial results on the CPU.
#pragma once

#include "problem/merge.hpp"  // "merge.hpp" would be this file

namespace foveal::cpu {

// merged = the parts put together; returns when the result is there. Uses thread_count() threads (cpu/threads.hpp)
// unless there is too little to share; a row's result does not depend on how many.
//
// Throws Error(INVALID_ARGUMENT) if FOVEAL_NUM_THREADS is malformed; nothing has been written then.
void merge(const Merge& merge);

}  // namespace foveal::cpu
