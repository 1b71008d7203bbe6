// Append on the CPU.
#pragma once

#include "problem/append.hpp"  // "append.hpp" would be this file

namespace foveal::cpu {

// Writes the new rows; returns when they are there. Uses thread_count() threads (cpu/threads.hpp) unless there is too
// little to share.
//
// Throws Error(INVALID_ARGUMENT), having written nothing, if a slot, length, page or position is out of range, or if
// FOVEAL_NUM_THREADS is malformed.
void append(const Append& append);

}  // namespace foveal::cpu
