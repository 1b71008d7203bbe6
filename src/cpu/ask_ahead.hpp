// Asks for a row's cache lines ahead of their use, among other work. Neighbouring rows of a head are often a page or
// more apart, where the hardware does not look ahead. They go to the L2 cache: what is asked for may be larger than L1,
// or lie in few of its sets (performance-log, CPU 4).
#pragma once

#include <cstddef>
#include <cstdint>

namespace foveal::cpu {

inline void ask_ahead(const void* row, int64_t bytes) {
    constexpr int64_t kLineBytes = 64;
    constexpr int kIntoL2 = 2;
    for (int64_t at = 0; at < bytes; at += kLineBytes)
        __builtin_prefetch(static_cast<const std::byte*>(row) + at, 0, kIntoL2);
}

}  // namespace foveal::cpu
