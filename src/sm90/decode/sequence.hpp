// A sequence as the decode kernel sees it: which of its keys take part. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/split.hpp"

namespace foveal::sm90 {

struct Sequence {
    int32_t len_q, len_k;
    int32_t first_q, first_k;  // varlen: its first rows
    int32_t off;               // contract 1.3
};

FOVEAL_HOST_DEVICE Sequence sequence_of(const DecodeParams& params, int32_t sequence) {
    const SequenceRows q = params.lengths_q.of(sequence), k = params.lengths_k.of(sequence);
    int32_t off = params.window.top_left ? 0 : k.length - q.length;
    if (params.query_offset != nullptr) off = params.query_offset[sequence * params.query_offset_stride];
    return {q.length, k.length, q.first, k.first, off};
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

// Where q is varlen, a sequence's columns are cut into parts of so many, a power of two, each of which reads its keys
// as if it were a sequence: only the device knows how many there are. (Of a dense q, they count as heads: params.hpp.)
// Sequences of too many or too few rows are other kernels', and have none here.
FOVEAL_HOST_DEVICE int32_t parts_of(const Sequence& sequence, const DecodeParams& params, int32_t columns) {
    if (params.lengths_q.cu_seqlens == nullptr) return 1;
    if (sequence.len_q < params.least_rows || sequence.len_q > params.most_rows) return 0;
    return (sequence.len_q * params.heads_per_kv + columns - 1) / columns;
}

FOVEAL_HOST_DEVICE SeenKeys seen_of(const Sequence& sequence, Window window) {
    if (sequence.len_q == 0) return {{0, 0}, 0, 0};
    const Range keys = seen_keys(band_of(sequence, window), sequence.len_q);
    if (keys.size() == 0) return {{0, 0}, 0, 0};
    const int32_t first_block = keys.begin / kBlockKeys;
    return {keys, first_block, (keys.end + kBlockKeys - 1) / kBlockKeys - first_block};
}

}  // namespace foveal::sm90
