// What the wide kernels have in common: tiles of 64 rows, of all columns that a head has: of Q and K, or of V and dO.
#pragma once

#include <cstdint>

#include "sm90/backward/producer.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/ptx/wgmma_d192.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/operand_load.hpp"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

template <BackwardConfig kConfig>
struct Wide {
    static constexpr int32_t kHeadDim = kConfig.tile.head_dim, kHeadDimV = kConfig.tile.head_dim_v;
    static constexpr DType kType = kConfig.dtype;
    static constexpr int32_t kRows = kWarpgroupRows;
    static constexpr int32_t kElements = kRows * kHeadDim, kElementsV = kRows * kHeadDimV;
    static constexpr uint32_t kPanelBytes = kRows * kPanelRowBytes;
    static constexpr int32_t kSteps = kRows / Format<kType>::kKstepColumns;  // over the rows of a tile
    // The kernel of dK and dV has registers for K and V beside the sums.
    static constexpr bool kKeepsKeys = kHeadDim <= 192;
    using Scores = float[Fragment::size(kRows)];
    using Operand = uint32_t[kSteps][4];
    template <int32_t kColumns>
    using Sums = float[Fragment::size(kColumns)];
    template <int32_t kColumns>
    using Load = TileLoad<kRows, kColumns>;

    // In a descriptor, the distance between tiles of so many columns.
    static __device__ __forceinline__ constexpr uint32_t distance(int32_t columns) {
        return static_cast<uint32_t>(kRows * columns * 2) / kDescriptorBytes;
    }

    static __device__ __forceinline__ uint32_t low_word(const uint16_t* tile) {
        return descriptor_low(tile, kPanelBytes);
    }

    // x += A B^T, rows of A against rows of B, of kColumns columns. Low words of tiles. Of all: issued as a wgmma
    // group.
    template <int32_t kColumns>
    static __device__ __forceinline__ void issue_scores(Scores& x, uint32_t a, uint32_t b) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kColumns / Format<kType>::kKstepColumns; ++step)
            ptx::wgmma_ss<kType>(x, descriptor(a + step_distance(step)), descriptor(b + step_distance(step)), true);
        ptx::wgmma_commit_group();
    }
    // The same with A in registers (read_operand()).
    template <size_t kRowSteps>
    static __device__ __forceinline__ void issue_scores(Scores& x, const uint32_t (&a)[kRowSteps][4], uint32_t b) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kRowSteps; ++step)
            ptx::wgmma_rs<kType>(x, a[step], descriptor(b + step_distance(step)), true);
        ptx::wgmma_commit_group();
    }

    // The warp's 16 rows of a tile, as wgmma takes them as A.
    template <size_t kRowSteps>
    static __device__ __forceinline__ void read_operand(uint32_t (&a)[kRowSteps][4], const uint16_t* tile,
                                                        int32_t warp) {
        const auto begin = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
        const int32_t lane = ptx::lane_id(), row = warp * kWarpRows + OperandLoad::row(lane);
#pragma unroll
        for (int32_t step = 0; step < static_cast<int32_t>(kRowSteps); ++step)
            ptx::ldmatrix_x4(
                begin + OperandLoad::panel(step) * kPanelBytes + swizzled(row, OperandLoad::vector(step, lane)),
                a[step]);
    }

    // sums += factors B, over the rows of B.
    template <int32_t kCount>
    static __device__ __forceinline__ void issue_sums(float (&sums)[kCount], const Operand& factors, uint32_t b,
                                                      bool accumulates) {
        static_assert(kCount == Fragment::size(kHeadDim) || kCount == Fragment::size(kHeadDimV));
        constexpr uint32_t kKstepRows = Format<kType>::kKstepColumns * kPanelRowBytes / kDescriptorBytes;
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kSteps; ++step)
            ptx::wgmma_rs_mn<kType>(sums, factors[step], descriptor(b + step * kKstepRows), accumulates || step != 0);
        ptx::wgmma_commit_group();
    }

   private:
    // In a descriptor, from a tile's begin to its columns of a kstep.
    static __device__ __forceinline__ constexpr uint32_t step_distance(uint32_t step) {
        constexpr uint32_t kPanelSteps = kPanelRowBytes / Format<kType>::kKstepBytes;
        return (step / kPanelSteps * kPanelBytes + step % kPanelSteps * Format<kType>::kKstepBytes) / kDescriptorBytes;
    }
};

}  // namespace foveal::sm90
