// Rows of one rank out of a whole call's tensors, in memory of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "foveal/foveal_parallel.h"

namespace foveal_testing {

int64_t bytes_of_element(foveal_dtype dtype);

// A tensor in memory of its own, without gaps, all NaN (0xFF).
struct Owned {
    std::vector<std::byte> bytes;
    foveal_tensor view{};

    Owned() = default;
    Owned(const foveal_tensor& like, int dimension, int64_t rows);
    // All NaN again; returns what it held.
    std::vector<std::byte> poison();
};

// Copies rows of `dimension`: [from_row, from_row + rows) to [to_row, to_row + rows).
void copy_rows(const foveal_tensor& from, int64_t from_row, const foveal_tensor& to, int64_t to_row, int64_t rows,
               int dimension);

// Rows of one rank, one span after the other: where each span lies in the whole tensor and in the rank's.
struct SpanRows {
    int64_t whole, local, rows;
};
std::vector<SpanRows> rows_of_rank(const std::vector<foveal_span>& spans, int32_t rank,
                                   const std::vector<int64_t>& lengths);
int64_t count_of(const std::vector<SpanRows>& rows);

// A rank's rows of `whole`, or all of it where the dimension is shared; of an absent tensor none.
Owned gathered(const foveal_tensor& whole, const std::vector<SpanRows>& rows, int dimension);
// Back to where they came from.
void scatter(const Owned& local, const std::vector<SpanRows>& rows, const foveal_tensor& whole, int dimension);

}  // namespace foveal_testing
