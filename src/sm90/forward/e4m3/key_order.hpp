// In which order keys stand in a row of V's transpose. Host and device share it.
//
// P comes out of S = Q K^T as wgmma's accumulator (tile/fragment.hpp): of every eight keys a thread has two neighbours.
// As an operand of 8-bit elements each of its registers has to hold four neighbouring columns. Any order of the columns
// will do if V's rows have the same, so a thread packs what it has, and V is transposed into this order:
//
//     columns of 16      0  1  2  3 |  4  5  6  7 |  8  9 10 11 | 12 13 14 15
//     their keys         0  1  8  9 |  2  3 10 11 |  4  5 12 13 |  6  7 14 15
//     lane of the row         0            1             2             3
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "sm90/tile/fragment.hpp"

namespace foveal::sm90 {

inline constexpr int32_t kOrderedKeys = 16;  // the pattern's length, and a vector's of V's transpose

// The key of a column of the second product, in a block.
FOVEAL_HOST_DEVICE constexpr int32_t key_of_column(int32_t column) {
    const int32_t lane = column % kOrderedKeys / 4, e = column % 4;
    return column / kOrderedKeys * kOrderedKeys + e / 2 * Fragment::kColumns + 2 * lane + e % 2;
}

// Of register i of the kstep-th A operand (32 columns): the register of S that is its byte e. PTX ISA, "Register
// Fragments for wgmma.mma_async.m64nNk32": register i has row i % 2, columns 16 (i / 2) + 4 lane ...
FOVEAL_HOST_DEVICE constexpr int32_t score_of_operand(int32_t kstep, int32_t i, int32_t e) {
    return Fragment::index(i % 2, kstep * 32 + i / 2 * kOrderedKeys + e / 2 * Fragment::kColumns + e % 2);
}

// How a warp transposes 32 keys by 16 channels. ldmatrix.trans has given it, of eight keys (`eight` of 0 to 3), pairs
// of channels: a lane's register holds channels 2 c and 2 c + 1 of keys 2 t and 2 t + 1, c = lane / 4, t = lane % 4. Of
// two such registers, sixteen keys, prmt makes one of four keys in the order above for each of the two channels; which
// of them is the first differs between the lower and the upper lanes, so that the eight rows which stmatrix writes at
// once lie in different banks.
struct Transposition {
    static constexpr uint32_t kEven = 0x6420, kOdd = 0x7531;  // prmt's selectors

    FOVEAL_HOST_DEVICE static constexpr uint32_t selector(int32_t lane, int32_t matrix) {
        return (lane / 16 == 0) == (matrix == 0) ? kEven : kOdd;
    }
    // The channel, of 16, that row `row` of stmatrix's first or second matrix is.
    FOVEAL_HOST_DEVICE static constexpr int32_t channel(int32_t row, int32_t matrix) {
        return 2 * row + ((row / 4 == 0) == (matrix == 0) ? 0 : 1);
    }
};

}  // namespace foveal::sm90
