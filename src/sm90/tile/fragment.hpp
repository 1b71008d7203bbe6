// The layout of a matrix in a warpgroup's registers, as wgmma's accumulator has it: the only place that knows it. Host
// and device share it. PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16":
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-register-fragment-wgmma-64n16-d
//
// Each warp has 16 of the 64 rows (one below the other: warp w from row 16 w on), and each thread two of those, eight
// apart. Four lanes share a row: of every eight columns each has two neighbours. A thread's registers hold, of eight
// columns, the pair of the first row, then that of the second; then come the next eight columns:
//
//     register          0   1   2   3   4   5   6   7   8 ...
//     row (r)           0   0   1   1   0   0   1   1   0        below the thread's first: 8 r
//     column            0   1   0   1   8   9   8   9  16        right of the thread's first
//
// Rounded to 16 bits, a pair is a register, and four of them in turn are what one wgmma takes as A (and ldmatrix and
// stmatrix move at once): 16 rows by 16 columns.
#pragma once

#include <cstdint>

#include "problem/mask.hpp"

namespace foveal::sm90 {

struct Fragment {
    static constexpr int32_t kRows = 2;            // of a thread
    static constexpr int32_t kRowDistance = 8;     // between them
    static constexpr int32_t kRowLanes = 4;        // that share a row
    static constexpr int32_t kColumns = 8;         // that the lanes of a row hold together, two each
    static constexpr int32_t kPairsOfOperand = 4;  // of 16 columns: a wgmma's A

    // Registers of a thread, of so many columns.
    FOVEAL_HOST_DEVICE static constexpr int32_t size(int32_t columns) { return columns / kColumns * 2 * kRows; }

    // A thread's first row, of its warp's, and its first column.
    FOVEAL_HOST_DEVICE static constexpr int32_t first_row(int32_t lane) { return lane / kRowLanes; }
    FOVEAL_HOST_DEVICE static constexpr int32_t first_column(int32_t lane) { return 2 * (lane % kRowLanes); }

    // Of register i: which of the thread's rows, how far below the first that is, and how far right of the first its
    // column is.
    FOVEAL_HOST_DEVICE static constexpr int32_t row(int32_t i) { return i >> 1 & 1; }
    FOVEAL_HOST_DEVICE static constexpr int32_t row_offset(int32_t i) { return row(i) * kRowDistance; }
    FOVEAL_HOST_DEVICE static constexpr int32_t column_offset(int32_t i) { return (i >> 2) * kColumns + (i & 1); }

    // The same of pair p: registers 2 p and 2 p + 1.
    FOVEAL_HOST_DEVICE static constexpr int32_t row_of_pair(int32_t p) { return p & 1; }

    // The register of the thread's row r, so many columns right of the thread's first: 0 or 1 more than a multiple of
    // eight.
    FOVEAL_HOST_DEVICE static constexpr int32_t index(int32_t r, int32_t column_offset) {
        return 4 * (column_offset / kColumns) + 2 * r + column_offset % kColumns;
    }

    // Of a thread's elements in a row, in the order of their columns, the n-th's column; and how many are less than so
    // many columns right of the thread's first.
    FOVEAL_HOST_DEVICE static constexpr int32_t column_of_nth(int32_t n) { return n / 2 * kColumns + n % 2; }
    FOVEAL_HOST_DEVICE static int32_t count_below(int32_t columns) {
        return (columns >> 3) * 2 + min_i32(columns & 7, 2);
    }
};

}  // namespace foveal::sm90
