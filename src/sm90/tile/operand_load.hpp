// How a warp reads 16 rows of a tile of panels (panel.hpp) as wgmma takes them as A (fragment.hpp): by one ldmatrix of
// four matrices of 8 x 8 for every 16 columns. Host and device share it.
#pragma once

#include <cstdint>

#include "problem/host_device.hpp"
#include "sm90/tile/panel.hpp"

namespace foveal::sm90 {

// Lane l gives the address of row l % 8 of matrix l / 8, and gets of each matrix two neighbours of row l / 4. Matrices
// 0 and 1 are the first and the last eight rows of the first eight columns, 2 and 3 those of the other columns.
struct OperandLoad {
    static constexpr int32_t kVectors = 2;  // of a row

    // Of the address that a lane gives: the row of the 16, and of 16-column step `step` the panel and the vector in it.
    FOVEAL_HOST_DEVICE static constexpr int32_t row(int32_t lane) { return lane % 16; }
    FOVEAL_HOST_DEVICE static constexpr int32_t panel(int32_t step) { return step * kVectors / kRowVectors; }
    FOVEAL_HOST_DEVICE static constexpr int32_t vector(int32_t step, int32_t lane) {
        return step * kVectors % kRowVectors + lane / 16;
    }
};

}  // namespace foveal::sm90
