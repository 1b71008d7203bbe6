// Where a sequence's rows lie along q or k, and how many of them take part (contract 1.1): the only place that knows.
// Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"

namespace foveal {

// Of one sequence: the rows before it, and its own that take part.
struct SequenceRows {
    int32_t first;
    int32_t length;
};

// Of all sequences, along q or along k.
struct Lengths {
    int32_t rows;                // dense: of every sequence; varlen: of all of them together
    const int32_t* cu_seqlens;   // [b + 1]; null: dense
    const int32_t* seqused;      // [b]; null: all rows of a sequence take part
    int32_t seqused_stride = 1;  // 0: one length for all

    FOVEAL_HOST_DEVICE SequenceRows of(int32_t sequence) const {
        return cu_seqlens != nullptr ? of_varlen(sequence) : of_dense(sequence);
    }

    // The same for who knows which form it is.
    FOVEAL_HOST_DEVICE SequenceRows of_dense(int32_t sequence) const { return {0, used(sequence, rows)}; }
    FOVEAL_HOST_DEVICE SequenceRows of_varlen(int32_t sequence) const {
        const int32_t first = cu_seqlens[sequence];
        return {first, used(sequence, cu_seqlens[sequence + 1] - first)};
    }

   private:
    FOVEAL_HOST_DEVICE int32_t used(int32_t sequence, int32_t length) const {
        return seqused != nullptr ? min_i32(seqused[sequence * seqused_stride], length) : length;
    }
};

// The sequence of row `row` of all: the last that begins at or before it. batch is not 0.
FOVEAL_HOST_DEVICE int32_t sequence_of(const int32_t* cu_seqlens, int32_t batch, int64_t row) {
    int32_t first = 0, end = batch;
    while (end - first > 1) {
        const int32_t middle = first + (end - first) / 2;
        (cu_seqlens[middle] <= row ? first : end) = middle;
    }
    return first;
}

}  // namespace foveal
