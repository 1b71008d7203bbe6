// How a block of K or V comes to shared memory in the kernels that take keys of any form: by the copy engine in boxes
// that lie in one page each, or gathered row by row by a producer warp's own copies, where pages are too small or odd.
// Either way it lies there as the wgmma wants it (tile/panel.hpp), and rows whose page nobody may look up are zeros.
// Used by whole, converged warps.
#pragma once

#include <cstdint>

#include "sm90/forward/key_places.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <int32_t kRows, int32_t kColumns>
class BoxLoader {
   public:
    __device__ __forceinline__ BoxLoader(const KeyPlaces& places, const CUtensorMap& map)
        : places_(places), map_(map) {}

    // Where this lane's box of a block lies, lane i's the i-th. row: the block's first, of the sequence.
    __device__ __forceinline__ KeyPlace find(const Work& work, int32_t row) const {
        if (!places_.in_pages) return {places_.dense ? work.sequence : 0, work.first_k + row};
        const int32_t box = ptx::lane_id() * places_.box_rows, begin = row + box;
        if (box >= kRows || begin >= work.seen.end || begin + places_.box_rows <= work.seen.begin) return kNoPlace;
        return place_in_pages(places_, places_.table.of(work.sequence), begin);
    }

    // place: of find(). The bytes complete on `barrier`.
    __device__ __forceinline__ void load(uint16_t* tile, uint64_t& barrier, int32_t head, KeyPlace place) const {
        const bool leads = ptx::elect_sync();
        if (leads) ptx::mbarrier_arrive_expect_tx(barrier, kRows * kColumns * 2);
        const int32_t boxes = kRows / places_.box_rows;
#pragma unroll 1
        for (int32_t i = 0; i < boxes; ++i) {
            const int32_t page = __shfl_sync(~0u, place.page, i), row = __shfl_sync(~0u, place.row, i);
            if (!leads) continue;
            uint16_t* box = tile + i * places_.box_rows * kPanelColumns;
#pragma unroll
            for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
                ptx::tensor_load(box + panel * kRows * kPanelColumns, map_, barrier, panel * kPanelColumns, row, head,
                                 page);
        }
        __syncwarp();
    }

   private:
    const KeyPlaces& places_;
    const CUtensorMap& map_;
};

template <int32_t kRows, int32_t kColumns>
class RowLoader {
    static constexpr int32_t kGroups = kRows / kWarpThreads;
    static constexpr int32_t kRowsAtOnce = kWarpThreads / kRowVectors;

   public:
    // Of a lane: its row in each of the block's groups of 32, in elements from the tensor's first; which rows of a
    // group there are.
    struct Rows {
        int64_t at[kGroups];
        uint32_t exist[kGroups];
    };

    __device__ __forceinline__ RowLoader(const KeyPlaces& places, const GatheredRows& tensor)
        : places_(places), tensor_(tensor) {}

    // Where the rows of a block lie. row: the block's first, of the sequence.
    __device__ __forceinline__ Rows find(const Work& work, int32_t row) const {
        const uint32_t* entries = places_.table.of(work.sequence);
        const int64_t of_head = work.head_k * tensor_.head_stride;
        Rows rows;
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g) {
            const int32_t key = row + g * kWarpThreads + ptx::lane_id();
            const bool exists = work.seen.contains(key);
            rows.at[g] = 0;
            rows.exist[g] = __ballot_sync(~0u, exists);
            if (!exists) continue;
            const KeyPlace place = place_in_pages(places_, entries, key);
            rows.at[g] = place.page * tensor_.page_stride + place.row * tensor_.row_stride + of_head;
        }
        return rows;
    }

    // Copies them, and waits for them. Zeros where there is no row or no column.
    __device__ __forceinline__ void load(uint16_t* tile, const Rows& rows) const {
        const int32_t lane = ptx::lane_id(), vector = lane % kRowVectors, column = vector * kVectorColumns;
        const uint16_t* data = static_cast<const uint16_t*>(tensor_.data) + column;
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g)
#pragma unroll 2
            for (int32_t first = 0; first < kWarpThreads; first += kRowsAtOnce) {
                const int32_t row = first + lane / kRowVectors;
                const uint16_t* from = data + __shfl_sync(~0u, rows.at[g], row);
                const bool exists = (rows.exist[g] >> row & 1) != 0;
                const uint32_t to = ptx::shared_address(tile) + swizzled(g * kWarpThreads + row, vector);
#pragma unroll
                for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
                    ptx::copy_async(to + panel * kRows * kPanelRowBytes, from + panel * kPanelColumns,
                                    exists && panel * kPanelColumns + column < tensor_.columns);
            }
        ptx::wait_for_copies();
        ptx::fence_proxy_async();
        __syncwarp();
    }

   private:
    const KeyPlaces& places_;
    const GatheredRows& tensor_;
};

}  // namespace foveal::sm90
