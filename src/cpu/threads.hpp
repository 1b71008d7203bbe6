// The library's threads: a pool that starts with the first call which wants it. Between calls its threads sleep, after
// they have looked for the next one for 50 us. Or those of another pool, by a runner.
//
// Any number of threads may call parallel_for at once: each caller works on its own job and idle workers join the
// oldest job that still wants help, so a process never runs more workers than the largest call asked for.
// A child of fork() has none of its parent's threads and starts its own pool. Workers block all signals and keep the
// CPU affinity of the thread that started them.
#pragma once

#include <cstdint>
#include <functional>

namespace foveal::cpu {

// Calls body(i) once for each i in [0, count), handing the indices out in ascending order to at most `threads` threads,
// the caller included, and returns when all have finished. If a call throws, no further index is handed out and the
// first exception is rethrown here. Every thread runs body in the default floating-point environment, whatever the
// caller's is: flush-to-zero in one thread and not in another would make results depend on who computed them.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

// As foveal_thread_runner of foveal.h.
using ThreadRunner = void (*)(void (*work)(void* job), void* job, int32_t threads, void* context);

// Who runs the parts of a parallel_for from now on; null: the library's pool, as in every child of fork().
void set_thread_runner(ThreadRunner runner, void* context);

}  // namespace foveal::cpu
