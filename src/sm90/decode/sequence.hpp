// A sequence as the decode kernel sees it: which of its keys take part. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/split.hpp"

namespace foveal::sm90 {

struct Sequence {
    int32_t len_q, len_k;
    int32_t first_k;  // varlen: its first row
    int32_t off;      // contract 1.3
};

FOVEAL_HOST_DEVICE Sequence sequence_of(const DecodeParams& params, int32_t sequence) {
    const int32_t len_q = params.lengths_q.of(sequence).length;
    const SequenceRows k = params.lengths_k.of(sequence);
    int32_t off = params.window.top_left ? 0 : k.length - len_q;
    if (params.query_offset != nullptr) off = params.query_offset[sequence * params.query_offset_stride];
    return {len_q, k.length, k.first, off};
}

FOVEAL_HOST_DEVICE Band band_of(const Sequence& sequence, Window window) {
    return band_at(window, sequence.off, sequence.len_k);
}

// Keys that some query sees, and the blocks that hold them.
struct SeenKeys {
    Range keys;
    int32_t first_block, blocks;

    // What the sequence counts for when work is dealt out; one without keys has an output to be written all the same.
    FOVEAL_HOST_DEVICE int32_t counted_blocks() const { return max_i32(blocks, 1); }
};

FOVEAL_HOST_DEVICE SeenKeys seen_of(const Sequence& sequence, Window window) {
    if (sequence.len_q == 0) return {{0, 0}, 0, 0};
    const Range keys = seen_keys(band_of(sequence, window), sequence.len_q);
    if (keys.size() == 0) return {{0, 0}, 0, 0};
    const int32_t first_block = keys.begin / kBlockKeys;
    return {keys, first_block, (keys.end + kBlockKeys - 1) / kBlockKeys - first_block};
}

}  // namespace foveal::sm90
