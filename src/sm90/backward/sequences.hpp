// What the backward's kernels ask about the sequences of a batch, whose lengths lie on the device, and where in the
// workspace the intermediate results of their rows lie. Host and device share it.
//
// Tiles of rows have slots: of one head, those of the first sequence come first. A varlen sequence begins at a slot
// that follows from cu_seqlens alone, so some slots stay empty, but nobody counts.
#pragma once

#include <cstdint>

#include "problem/lengths.hpp"
#include "problem/mask.hpp"
#include "sm90/backward/tiles.hpp"

namespace foveal::sm90 {

// Queries, of len_q, that see one of the keys [keys.begin, keys.end). A query sees keys from an end to an end, which
// both ascend: so these are an interval.
FOVEAL_HOST_DEVICE Range seeing_queries(Band band, Range keys, int32_t len_q) {
    const int32_t last_key = min_i32(keys.end, band.len_k) - 1;
    if (last_key < keys.begin) return {0, 0};
    Range rows{max_i32(0, keys.begin - band.high), min_i32(len_q, last_key - band.low + 1)};
    if (band.chunk > 0) {
        rows.begin = max_i32(rows.begin, keys.begin / band.chunk * band.chunk - band.off);
        rows.end = min_i32(rows.end, (last_key / band.chunk + 1) * band.chunk - band.off);
    }
    return rows;
}

struct BackwardSequence {
    SequenceRows q, k;
    Band band;
    Range seen;    // keys that some query sees
    Range seeing;  // queries that see some key
    int32_t slot;  // of its first query tile
};

// Tiles of `rows` rows along q or k, of one head.
struct Slots {
    int32_t rows;

    FOVEAL_HOST_DEVICE int32_t tiles(int32_t length) const { return (length + rows - 1) / rows; }
    // Of a sequence's first tile. A varlen sequence that ends inside a tile has one more than its rows divided by those
    // of a tile: `sequence` makes up for it.
    FOVEAL_HOST_DEVICE int32_t of(const Lengths& lengths, int32_t sequence) const {
        return lengths.cu_seqlens != nullptr ? lengths.cu_seqlens[sequence] / rows + sequence
                                             : sequence * tiles(lengths.rows);
    }
    FOVEAL_HOST_DEVICE int32_t count(bool varlen, int32_t batch, int32_t all_rows) const {
        return varlen ? all_rows / rows + batch : batch * tiles(all_rows);
    }
    // The sequence that a slot belongs to, of a batch.
    FOVEAL_HOST_DEVICE int32_t sequence_at(const Lengths& lengths, int32_t batch, int32_t slot) const {
        if (lengths.cu_seqlens == nullptr) return slot / tiles(lengths.rows);
        int32_t begin = 0, end = batch;  // of(begin) <= slot < of(end)
        while (end - begin > 1) {
            const int32_t middle = begin + (end - begin) / 2;
            (of(lengths, middle) <= slot ? begin : end) = middle;
        }
        return begin;
    }
};
FOVEAL_HOST_DEVICE constexpr Slots query_slots() { return {kBackwardQueries}; }

struct BackwardSequences {
    Lengths q, k;
    Window window;
    int32_t batch;
    int32_t slots;  // of a head, of query tiles

    FOVEAL_HOST_DEVICE bool is_varlen() const { return q.cu_seqlens != nullptr; }
    // Have all sequences the same lengths? Known from the form alone.
    FOVEAL_HOST_DEVICE bool are_alike() const { return !is_varlen() && q.seqused == nullptr && k.seqused == nullptr; }

    FOVEAL_HOST_DEVICE BackwardSequence of(int32_t sequence) const {
        BackwardSequence s;
        s.q = q.of(sequence);
        s.k = k.of(sequence);
        s.band = band_of(window, s.q.length, s.k.length);
        s.seen = s.q.length > 0 ? seen_keys(s.band, s.q.length) : Range{0, 0};
        s.seeing = seeing_queries(s.band, {0, s.k.length}, s.q.length);
        s.slot = query_slots().of(q, sequence);
        return s;
    }
};

}  // namespace foveal::sm90
