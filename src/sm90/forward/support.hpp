// What the sm90 backend's forward can do exactly, and with which kernel.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/forward/tiles.hpp"

namespace foveal::sm90 {

// Which instantiation of the forward kernel.
struct ForwardChoice {
    int32_t tile_index = 0;  // into kForwardTiles
    ForwardVariant variant{};
    bool any_keys = false;     // as in ForwardConfig
    bool dequantises = false;  // keys are in e4m3: its kernels take them in any form
    bool operator==(const ForwardChoice&) const = default;
};

// Is there a kernel of this tile for keys in e4m3? Of one variant each, which has every option; d 192 takes that of d
// 256.
constexpr bool dequantises_with(const ForwardTileEntry& entry, ForwardVariant variant) {
    return variant == ForwardVariant::options_lse && entry.serves(variant, true) && entry.tile.head_dim != 192;
}

// Throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_supported(const ForwardProblem& problem);

// A part of it: tiles are counted in 32 bits.
void check_tile_count(const ForwardProblem& problem, const ForwardTile& tile);

// Does the host know how many keys each sequence has? Where it does not, rows_k, an upper bound, must not decide how a
// sequence is computed.
bool knows_lengths_of_keys(const ForwardProblem& problem);

// The kernel for the problem. Throws as check_supported() does.
ForwardChoice choice_of(const ForwardProblem& problem);

const char* name_of(ForwardVariant variant);

}  // namespace foveal::sm90
