// A position in a ring of buffers. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"

namespace foveal::sm90 {

// A buffer is full in the phase `parity` of its barriers (pipeline.cuh), and free before it in the other.
template <int32_t kSize>
struct RingPosition {
    int32_t slot = 0;
    uint32_t parity = 0;
    FOVEAL_HOST_DEVICE void advance() {
        if (++slot == kSize) {
            slot = 0;
            parity ^= 1;
        }
    }
};

}  // namespace foveal::sm90
