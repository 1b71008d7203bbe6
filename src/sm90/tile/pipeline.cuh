// Rings of buffers in shared memory.
#pragma once

#include <cstdint>

namespace foveal::sm90 {

// A position in a ring of buffers. A buffer is full in the phase `parity`, and free before it in the other.
template <int32_t kSize>
struct RingPosition {
    int32_t slot = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == kSize) {
            slot = 0;
            parity ^= 1;
        }
    }
};

}  // namespace foveal::sm90
