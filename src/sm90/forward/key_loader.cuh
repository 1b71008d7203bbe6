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
    // Boxes whose places are in every lane before the first is asked for. At d 512, whose boxes are eight panels, more
    // than one would not fit a producer's registers; there a block is two boxes of 16 rows, and loads bind nothing.
    static constexpr int32_t kAtOnce = kColumns <= 256 ? 4 : 1;

   public:
    // Where a block's boxes lie: the i-th in lane i, and the first ones in every lane.
    struct Boxes {
        KeyPlace of_lane;
        KeyPlace first[kAtOnce];
    };

    __device__ __forceinline__ BoxLoader(const KeyPlaces& places, const CUtensorMap& map)
        : places_(places), map_(map) {}

    // Before a buffer is waited for, so that this takes no time. row: the block's first, of the sequence.
    __device__ __forceinline__ Boxes find(const Work& work, int32_t row) const {
        Boxes boxes;
        boxes.of_lane = find_of_lane(work, row);
        take(boxes, 0);
        return boxes;
    }

    // Their bytes complete on `barrier`.
    __device__ __forceinline__ void load(uint16_t* tile, uint64_t& barrier, int32_t head, Boxes boxes) const {
        const bool leads = ptx::elect_sync();
        if (leads) {
            ptx::mbarrier_arrive_expect_tx(barrier, kRows * kColumns * 2);
            load_first(tile, barrier, head, boxes, 0);
        }
#pragma unroll 1
        for (int32_t i = kAtOnce; i < places_.boxes; i += kAtOnce) {
            take(boxes, i);
            if (leads) load_first(tile, barrier, head, boxes, i);
        }
        __syncwarp();
    }

   private:
    __device__ __forceinline__ KeyPlace find_of_lane(const Work& work, int32_t row) const {
        if (!places_.in_pages) return {places_.dense ? work.sequence : 0, work.first_k + row};
        const int32_t begin = row + (ptx::lane_id() & (places_.boxes - 1)) * places_.box_rows;
        if (begin >= work.seen.end || begin + places_.box_rows <= work.seen.begin) return kNoPlace;
        return place_in_pages(places_, places_.table.of(work.sequence), begin);
    }

    __device__ __forceinline__ void take(Boxes& boxes, int32_t from) const {
#pragma unroll
        for (int32_t j = 0; j < kAtOnce; ++j)
            boxes.first[j] = {__shfl_sync(~0u, boxes.of_lane.page, from + j),
                              __shfl_sync(~0u, boxes.of_lane.row, from + j)};
    }

    // By one thread: of the block's boxes those from `from` on that boxes.first holds.
    __device__ __forceinline__ void load_first(uint16_t* tile, uint64_t& barrier, int32_t head, const Boxes& boxes,
                                               int32_t from) const {
#pragma unroll
        for (int32_t j = 0; j < kAtOnce; ++j) {
            if (from + j >= places_.boxes) break;
            uint16_t* box = tile + (from + j) * places_.box_rows * kPanelColumns;
#pragma unroll
            for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
                ptx::tensor_load(box + panel * kRows * kPanelColumns, map_, barrier, panel * kPanelColumns,
                                 boxes.first[j].row, head, boxes.first[j].page);
        }
    }

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

    // Begins to copy them. Zeros where there is no row or no column.
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
    }

    // What load() has begun is there, for wgmma too.
    __device__ __forceinline__ void finish() const {
        ptx::wait_for_copies();
        ptx::fence_proxy_async();
        __syncwarp();
    }

   private:
    const KeyPlaces& places_;
    const GatheredRows& tensor_;
};

}  // namespace foveal::sm90
