// What the wide kernels have in common: tiles of 64 rows, of all columns that a head has.
#pragma once

#include <cstdint>

#include "sm90/backward/producer.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

template <BackwardConfig kConfig>
struct Wide {
    static constexpr int32_t kHeadDim = kConfig.tile.head_dim;
    static constexpr DType kType = kConfig.dtype;
    static constexpr int32_t kRows = kWarpgroupRows;
    static constexpr int32_t kElements = kRows * kHeadDim;
    static constexpr uint32_t kTile = kElements * 2 / kDescriptorBytes;
    static constexpr uint32_t kPanelBytes = kRows * kPanelRowBytes;
    static constexpr int32_t kSteps = kRows / Format<kType>::kKstepColumns;  // over the rows of a tile
    using Scores = float[Fragment::size(kRows)];
    using Operand = uint32_t[kSteps][4];
    using Sums = float[Fragment::size(kHeadDim)];
    using Load = TileLoad<kRows, kHeadDim>;

    static __device__ __forceinline__ uint32_t low_word(const uint16_t* tile) {
        return descriptor_low(tile, kPanelBytes);
    }

    // x += A B^T, rows of A against rows of B. Low words of tiles. Of both: issued as a wgmma group.
    static __device__ __forceinline__ void issue_scores(Scores& x, uint32_t a, uint32_t b) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kHeadDim / Format<kType>::kKstepColumns; ++step) {
            constexpr uint32_t kPanelSteps = kPanelRowBytes / Format<kType>::kKstepBytes;
            const uint32_t at =
                (step / kPanelSteps * kPanelBytes + step % kPanelSteps * Format<kType>::kKstepBytes) / kDescriptorBytes;
            ptx::wgmma_ss<kType>(x, descriptor(a + at), descriptor(b + at), true);
        }
        ptx::wgmma_commit_group();
    }

    // sums += factors B, over the rows of B.
    static __device__ __forceinline__ void issue_sums(Sums& sums, const Operand& factors, uint32_t b,
                                                      bool accumulates) {
        constexpr uint32_t kKstepRows = Format<kType>::kKstepColumns * kPanelRowBytes / kDescriptorBytes;
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kSteps; ++step)
            ptx::wgmma_rs_mn<kType>(sums, factors[step], descriptor(b + step * kKstepRows), accumulates || step != 0);
        ptx::wgmma_commit_group();
    }
};

}  // namespace foveal::sm90
