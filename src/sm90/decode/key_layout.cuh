// Where K and V lie in a slot of the decode kernel's ring, and Q in its own place.
//
// 16-bit keys, like Q, lie in panels with the 128-byte swizzle (tile/panel.cuh). So do keys in e4m3, of which a panel
// has twice as many channels; of 64 channels there is one panel, whose rows have 64 bytes and the 64-byte swizzle.
#pragma once

#include <cstdint>

#include "sm90/decode/tiles.hpp"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

// Byte offset, in a panel, of a key's 16-byte vector.
template <DecodeTile kTile>
__device__ __forceinline__ uint32_t key_vector_offset(int32_t key, int32_t vector) {
    if constexpr (kTile.panel_row_bytes() == kPanelRowBytes) {
        return swizzled(key, vector);
    } else {
        static_assert(kTile.panel_row_bytes() == kPanelRowBytes / 2);
        return static_cast<uint32_t>(key * kTile.panel_row_bytes() + ((vector ^ (key >> 1 & 3)) << 4));
    }
}

}  // namespace foveal::sm90
