// The end of a tile: the rows of O are normalised and rounded, and go through shared memory to global memory.
#pragma once

#include "sm90/forward/params.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/format.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

// Factors of a thread's two rows.
struct RowScale {
    float of[2];
};

// kPanels 64-column panels of O, from kFirst on, to this warp's rows of `staging`, which is laid out as a tile of
// panels (panel.cuh).
template <DType kType, int32_t kFirst, int32_t kPanels, int32_t kOut>
__device__ __forceinline__ void stage_panels(uint16_t* staging, int32_t warp, int32_t lane, const float (&o)[kOut],
                                             RowScale scale) {
    const auto round = [&](int32_t i, int32_t r) {
        return Format<kType>::pack(o[i] * scale.of[r], o[i + 1] * scale.of[r]);
    };
    const auto base = ptx::shared_address(staging);
    const int32_t row = warp * kWarpRows + lane % 16;  // lanes 0-15 address the left 8 columns, 16-31 the right
#pragma unroll
    for (int32_t c = 0; c < kPanels * 4; ++c) {  // 16 columns a time
        const uint32_t panel = static_cast<uint32_t>(c / 4) * kWarpgroupRows * kPanelRowBytes;
        const int32_t i = (kFirst * 4 + c) * 2 * Fragment::kPairsOfOperand;
        ptx::stmatrix_x4(base + panel + swizzled(row, c % 4 * 2 + lane / 16), round(i, 0), round(i + 2, 1),
                         round(i + 4, 0), round(i + 6, 1));
    }
}

// This warp's staged rows to global memory. first_column: of the output.
template <int32_t kPanels>
__device__ __forceinline__ void store_panels(const uint16_t* staging, int32_t warp, int32_t lane,
                                             const CUtensorMap& map, const ForwardParams& params, const Work& work,
                                             const Segment& segment, int32_t first_column) {
    const int32_t rows = work.len_q - segment.query;  // of the sequence from here on
    const int32_t row = work.first_q + segment.query, head = segment.head;
    if (rows >= kWarpRows || work.first_q + work.len_q == params.rows_q) {
        // A box that reaches past the tensor is cut by the copy engine.
        ptx::fence_proxy_async();
        __syncwarp();
        if (ptx::elect_sync()) {
#pragma unroll
            for (int32_t panel = 0; panel < kPanels; ++panel)
                ptx::tensor_store(staging + (panel * kWarpgroupRows + warp * kWarpRows) * kPanelColumns, map,
                                  first_column + panel * kPanelColumns, row, head, work.batch);
            ptx::bulk_commit_group();
        }
    } else {
        // The box would reach into the next sequence.
        constexpr int32_t kVectors = kPanels * kRowVectors;  // of a row
        __syncwarp();
        auto* out = static_cast<uint16_t*>(params.out) + work.batch * params.out_batch_stride +
                    head * params.out_head_stride + first_column;
        for (int32_t i = lane; i < rows * kVectors; i += 32) {
            const int32_t r = i / kVectors, vector = i % kVectors;
            if (first_column + vector * kVectorColumns >= params.head_dim_v) continue;
            const auto* panel =
                reinterpret_cast<const char*>(staging + vector / kRowVectors * kWarpgroupRows * kPanelColumns);
            const auto* from =
                reinterpret_cast<const uint4*>(panel + swizzled(warp * kWarpRows + r, vector % kRowVectors));
            *reinterpret_cast<uint4*>(out + (row + r) * params.out_row_stride + vector * kVectorColumns) = *from;
        }
    }
    __syncwarp();
}

// This warp's rows of kColumns columns in f32, from the registers: four lanes write 32 bytes of a row at a time, whole
// sectors, and there is no room for f32 in the staging buffer. first_column: of the output.
template <int32_t kColumns, int32_t kOut>
__device__ __forceinline__ void store_f32(const float (&o)[kOut], RowScale scale, int32_t lane,
                                          const ForwardParams& params, const Work& work, const Segment& segment,
                                          int32_t first_column) {
    float* const out = static_cast<float*>(params.out) + work.batch * params.out_batch_stride +
                       segment.head * params.out_head_stride + Fragment::first_column(lane) + first_column;
    const int32_t columns_left = params.head_dim_v - first_column;
#pragma unroll
    for (int32_t r = 0; r < Fragment::kRows; ++r) {
        const int32_t row = segment.query + Fragment::first_row(lane) + Fragment::kRowDistance * r;
        if (row >= work.len_q) continue;
        float* const to = out + (work.first_q + row) * params.out_row_stride;
#pragma unroll
        for (int32_t column = 0; column < kColumns; column += Fragment::kColumns) {
            const int32_t i = Fragment::index(r, column);
            if (column < columns_left)
                *reinterpret_cast<float2*>(to + column) = {o[i] * scale.of[r], o[i + 1] * scale.of[r]};
        }
    }
}

// The log-sum-exp of two of the warp's rows, the thread's.
__device__ __forceinline__ void store_lse(const ForwardParams& params, const Work& work, const Segment& segment,
                                          int32_t lane, const float (&lse)[2]) {
    if (Fragment::first_column(lane) != 0) return;
    float* out =
        params.lse + work.batch * params.lse_batch_stride + segment.head * params.lse_head_stride + work.first_q;
#pragma unroll
    for (int32_t r = 0; r < 2; ++r) {
        const int32_t row = segment.query + Fragment::first_row(lane) + Fragment::kRowDistance * r;
        if (row < work.len_q) out[row] = lse[r];
    }
}

}  // namespace foveal::sm90
