// The two matrix products of a warpgroup, of 64 rows, from tiles of panels (panel.cuh) that the copy engine has laid
// out: S = Q K^T and O += P V.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {

// S = Q K^T, of kKeys columns, summed over kHeadDim.
template <DType kType, int32_t kKeys, int32_t kHeadDim>
struct ScoreProduct {
    static constexpr int32_t kScores = Fragment::size(kKeys);
    static constexpr uint32_t kRowPanelBytes = kWarpgroupRows * kPanelRowBytes;
    static constexpr uint32_t kKeyPanelBytes = static_cast<uint32_t>(kKeys) * kPanelRowBytes;

    // Issued, as a wgmma group. q, k: low words of the tiles' descriptors.
    static __device__ __forceinline__ void issue(float (&s)[kScores], uint32_t q, uint32_t k) {
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < kHeadDim / Format<kType>::kKstepColumns; ++step) {
            constexpr uint32_t kPanelSteps = kPanelRowBytes / Format<kType>::kKstepBytes;
            const uint32_t panel = step / kPanelSteps, in_panel = step % kPanelSteps * Format<kType>::kKstepBytes;
            const uint32_t q_step = q + (panel * kRowPanelBytes + in_panel) / kDescriptorBytes;
            const uint32_t k_step = k + (panel * kKeyPanelBytes + in_panel) / kDescriptorBytes;
            ptx::wgmma_ss<kType>(s, descriptor(q_step), descriptor(k_step), step != 0);
        }
        ptx::wgmma_commit_group();
    }
};

// O += P V: kAccumulators a thread, summed over kKeys. kHasOnes: after V's only panel come the first eight columns of a
// tile of ones, whose products are the sums of P's rows.
template <DType kType, int32_t kKeys, int32_t kAccumulators, bool kHasOnes>
struct OutputProduct {
    static constexpr int32_t kSteps = kKeys / Format<kType>::kKstepColumns;
    static constexpr uint32_t kPanelBytes = static_cast<uint32_t>(kKeys) * kPanelRowBytes;

    // `v` moved on by `bytes`. The columns of ones stay where they are, so the distance to them shrinks by as much.
    static __device__ __forceinline__ uint32_t advance(uint32_t v, uint32_t bytes) {
        const uint32_t moved = bytes / kDescriptorBytes;
        return v + moved - (kHasOnes ? moved << 16 : 0);
    }

    // Issued for ksteps [kBegin, kEnd), as part of a wgmma group; the first of all sets O if it is not to accumulate.
    // v: low word of the descriptor.
    template <int32_t kBegin, int32_t kEnd>
    static __device__ __forceinline__ void issue(float (&o)[kAccumulators], const uint32_t (&p)[kSteps][4], uint32_t v,
                                                 bool accumulate) {
#pragma unroll
        for (int32_t step = kBegin; step < kEnd; ++step)
            ptx::wgmma_rs_mn<kType>(
                o, p[step],
                descriptor(advance(v, static_cast<uint32_t>(step) * Format<kType>::kKstepColumns * kPanelRowBytes)),
                accumulate || step != 0);
    }
};

}  // namespace foveal::sm90
