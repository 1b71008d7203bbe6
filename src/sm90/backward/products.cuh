// The five products of a step, as a warpgroup issues them: S = K Q^T and dP = V dO^T of its 64 keys, dV += P dO and
// dK += dS Q of them, and its half of dQ's columns, summed over the keys of both warpgroups.
#pragma once

#include <cstdint>

#include "sm90/backward/shared.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/ptx/wgmma_mn.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <BackwardConfig kConfig>
class BackwardProducts {
    static constexpr BackwardTile kTile = kConfig.tile;
    static constexpr DType kType = kConfig.dtype;
    static constexpr int32_t kKstepColumns = Format<kType>::kKstepColumns;
    static constexpr uint32_t kKeyPanelBytes = kBackwardKeys * kPanelRowBytes;
    static constexpr uint32_t kQueryPanelBytes = kBackwardQueries * kPanelRowBytes;
    static constexpr uint32_t kKeyTile = kTile.key_elements() * 2 / kDescriptorBytes;
    static constexpr uint32_t kQueryTile = kTile.query_elements() * 2 / kDescriptorBytes;
    static constexpr uint32_t kKstepRows = kKstepColumns * kPanelRowBytes / kDescriptorBytes;  // of an MN-major tile

   public:
    static constexpr int32_t kScores = Fragment::size(kBackwardQueries);
    static constexpr int32_t kGradients = Fragment::size(kTile.head_dim);
    static constexpr int32_t kDqColumns = Fragment::size(kTile.dq_columns());
    static constexpr int32_t kQuerySteps = kBackwardQueries / kKstepColumns;
    using Scores = float[kScores];
    using Operand = uint32_t[kQuerySteps][4];
    using DqColumns = float[kDqColumns];

    __device__ __forceinline__ BackwardProducts(const BackwardShared<kConfig>& shared, int32_t warpgroup)
        : k_(descriptor_low(shared.k[0] + warpgroup * kWarpgroupRows * kPanelColumns, 0)),
          v_(descriptor_low(shared.v + warpgroup * kWarpgroupRows * kPanelColumns, 0)),
          q_(descriptor_low(shared.q[0], kQueryPanelBytes)),
          dout_(descriptor_low(shared.dout[0], kQueryPanelBytes)),
          ds_(descriptor_low(shared.ds, kKeyPanelBytes)),
          k_columns_(descriptor_low(shared.k[0], kKeyPanelBytes) + first_dq_column(warpgroup)) {}

    // Added to what s holds. Of all: issued as a wgmma group.
    __device__ __forceinline__ void issue_scores(Scores& s, int32_t key_slot, int32_t query_slot) const {
        issue_transposed(s, k_ + static_cast<uint32_t>(key_slot) * kKeyTile,
                         q_ + static_cast<uint32_t>(query_slot) * kQueryTile);
    }
    __device__ __forceinline__ void issue_dp(Scores& dp, int32_t dout_slot) const {
        issue_transposed(dp, v_, dout_ + static_cast<uint32_t>(dout_slot) * kQueryTile);
    }

    __device__ __forceinline__ void issue_dv(float (&dv)[kGradients], const Operand& p, int32_t dout_slot,
                                             bool accumulates) const {
        issue_gradient(dv, p, dout_ + static_cast<uint32_t>(dout_slot) * kQueryTile, accumulates);
    }
    __device__ __forceinline__ void issue_dk(float (&dk)[kGradients], const Operand& ds, int32_t query_slot,
                                             bool accumulates) const {
        issue_gradient(dk, ds, q_ + static_cast<uint32_t>(query_slot) * kQueryTile, accumulates);
    }

    // Of the dS in shared memory.
    __device__ __forceinline__ void issue_dq(DqColumns& dq, int32_t key_slot) const {
        const uint32_t k = k_columns_ + static_cast<uint32_t>(key_slot) * kKeyTile;
        ptx::wgmma_fence();
        ptx::wgmma_mn<kType, true>(dq, descriptor(ds_), descriptor(k));
#pragma unroll
        for (uint32_t step = 1; step < kBackwardKeys / kKstepColumns; ++step)
            ptx::wgmma_mn<kType, false>(dq, descriptor(ds_ + step * kKstepRows), descriptor(k + step * kKstepRows));
        ptx::wgmma_commit_group();
    }

   private:
    // In 16 bytes, from a K tile's begin.
    static __device__ __forceinline__ uint32_t first_dq_column(int32_t warpgroup) {
        const int32_t column = warpgroup * kTile.dq_columns();
        const int32_t bytes =
            column / kPanelColumns * static_cast<int32_t>(kKeyPanelBytes) + column % kPanelColumns * 2;
        return uniform(static_cast<uint32_t>(bytes) / kDescriptorBytes);
    }

    // keys: low word of a tile of kBackwardKeys rows, at this warpgroup's; queries: of a tile of queries.
    static __device__ __forceinline__ void issue_transposed(Scores& s, uint32_t keys, uint32_t queries) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kTile.head_dim / kKstepColumns; ++step) {
            constexpr uint32_t kPanelSteps = kPanelRowBytes / Format<kType>::kKstepBytes;
            const uint32_t panel = step / kPanelSteps, in_panel = step % kPanelSteps * Format<kType>::kKstepBytes;
            ptx::wgmma_ss<kType>(s, descriptor(keys + (panel * kKeyPanelBytes + in_panel) / kDescriptorBytes),
                                 descriptor(queries + (panel * kQueryPanelBytes + in_panel) / kDescriptorBytes), true);
        }
        ptx::wgmma_commit_group();
    }

    // rows: low word of a tile of queries.
    static __device__ __forceinline__ void issue_gradient(float (&sum)[kGradients], const Operand& factors,
                                                          uint32_t rows, bool accumulates) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kQuerySteps; ++step)
            ptx::wgmma_rs_mn<kType>(sum, factors[step], descriptor(rows + step * kKstepRows), accumulates || step != 0);
        ptx::wgmma_commit_group();
    }

    // Low words of descriptors: of K and V at this warpgroup's keys; of Q, dO and dS; of K at the warpgroup's columns
    // of dQ.
    const uint32_t k_, v_, q_, dout_, ds_, k_columns_;
};

}  // namespace foveal::sm90
