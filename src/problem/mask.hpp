// Which keys a query sees (contract 1.3): the only place that knows. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal {

// A side of the window that reaches past every sequence. Lengths are below 2^30 (validate() sees to it), so row + off
// +- kUnlimitedWidth neither overflows nor falls inside a sequence.
inline constexpr int32_t kMaxSequenceLength = (1 << 29) - 1;
inline constexpr int32_t kUnlimitedWidth = 1 << 30;

// Half-open range of keys, rows or blocks.
struct Range {
    int32_t begin;
    int32_t end;
    FOVEAL_HOST_DEVICE bool contains(int32_t i) const { return begin <= i && i < end; }
    FOVEAL_HOST_DEVICE int32_t size() const { return end > begin ? end - begin : 0; }
};

// The window as the caller gave it; widths already clamped to kUnlimitedWidth.
struct Window {
    int32_t left = kUnlimitedWidth;
    int32_t right = kUnlimitedWidth;
    bool top_left = false;
    int32_t chunk = 0;  // positions a chunk; 0: no chunks
    FOVEAL_HOST_DEVICE bool limited() const { return left < kUnlimitedWidth || right < kUnlimitedWidth || chunk > 0; }
};

// The window laid over one sequence: query i sees key j iff i + low <= j <= i + high and 0 <= j < len_k, and, with
// chunks, i + off and j lie in the same one.
struct Band {
    int32_t low;
    int32_t high;
    int32_t len_k;
    int32_t off;
    int32_t chunk;
};

// off: where query 0 stands among the keys; at most kMaxSequenceLength in size.
FOVEAL_HOST_DEVICE Band band_at(Window window, int32_t off, int32_t len_k) {
    // An unlimited side stays unlimited whatever the offset.
    const int32_t low = window.left == kUnlimitedWidth ? -kUnlimitedWidth : off - window.left;
    const int32_t high = window.right == kUnlimitedWidth ? kUnlimitedWidth : off + window.right;
    return {low, high, len_k, off, window.chunk};
}

FOVEAL_HOST_DEVICE Band band_of(Window window, int32_t len_q, int32_t len_k) {
    return band_at(window, window.top_left ? 0 : len_k - len_q, len_k);
}

// The keys that query i sees. Empty ranges have begin >= end. Both ends ascend with i.
FOVEAL_HOST_DEVICE Range visible_keys(Band band, int32_t i) {
    const Range keys{max_i32(0, i + band.low), min_i32(band.len_k, i + band.high + 1)};
    if (band.chunk == 0) return keys;
    const int32_t position = i + band.off;
    if (position < 0) return {keys.begin, 0};  // its chunk ends before the first key
    const int32_t chunk_begin = position / band.chunk * band.chunk;
    return {max_i32(keys.begin, chunk_begin), min_i32(keys.end, chunk_begin + band.chunk)};
}

// The keys that some query of a sequence sees, of len_q > 0 queries; the others never reach a result (contract 1.6).
// One range, since the ends ascend with the query and neighbours' keys meet; without a key, begin >= end.
FOVEAL_HOST_DEVICE Range seen_keys(Band band, int32_t len_q) {
    return {visible_keys(band, 0).begin, visible_keys(band, len_q - 1).end};
}

// K/V blocks that a tile of query rows visits. Blocks outside `visit` hold no key that any row of the tile sees;
// in blocks inside `unmasked` every row of the tile sees every key. visit.begin <= unmasked.begin <= unmasked.end <=
// visit.end.
struct BlockRange {
    Range visit;
    Range unmasked;
};

// rows: the tile's query rows, not empty. block: keys a block.
FOVEAL_HOST_DEVICE BlockRange kv_range(Band band, Range rows, int32_t block) {
    const Range first = visible_keys(band, rows.begin);
    const Range last = visible_keys(band, rows.end - 1);
    // Both ends ascend with the row, so the union runs from the first row's begin to the last row's end ...
    BlockRange r;
    r.visit.begin = first.begin / block;
    r.visit.end = last.end > first.begin ? (last.end + block - 1) / block : r.visit.begin;
    // ... and the intersection from the last row's begin to the first row's end.
    r.unmasked.begin = min_i32(max_i32((last.begin + block - 1) / block, r.visit.begin), r.visit.end);
    r.unmasked.end = max_i32(min_i32(max_i32(first.end, 0) / block, r.visit.end), r.unmasked.begin);
    return r;
}

}  // namespace foveal
