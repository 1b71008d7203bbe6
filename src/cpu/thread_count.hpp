// How many threads a call on the CPU may use.
#pragma once

#include <cstdint>

namespace foveal::cpu {

// The caller included: what set_thread_count() said, else FOVEAL_NUM_THREADS; else the CPUs that the calling thread may
// run on, but no more than the quota of its cgroups allows at once, nor than OMP_NUM_THREADS if that begins with a
// number. Throws Error(INVALID_ARGUMENT) if FOVEAL_NUM_THREADS is asked and is not an integer in [1, 4096].
int thread_count();

// The same for work that may be too small to share: then 1, unless a count was set, without asking the system, which
// takes half a microsecond. FOVEAL_NUM_THREADS is looked at all the same.
int thread_count_for(bool small_work);

// For all threads of the process, from their next call on; 0 takes it back. Throws Error(INVALID_ARGUMENT) outside
// [0, 4096].
void set_thread_count(int32_t count);

}  // namespace foveal::cpu
