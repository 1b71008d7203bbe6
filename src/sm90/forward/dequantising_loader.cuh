// How a block of K or V in e4m3 comes to shared memory: a producer warp gathers its rows, of keys of any form, and
// turns them into q's type where they lie, as the wgmma wants them (tile/panel.hpp). Used by whole, converged warps.
//
// Each 64 channels of a row take 64 bytes of the 128 that their panel will have there. Four lanes copy them, read back
// what they copied themselves, and write its double.
#pragma once

#include <cstdint>

#include "sm90/forward/key_descales.hpp"
#include "sm90/forward/key_places.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/dequantise.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <DType kType, int32_t kRows, int32_t kColumns>
class DequantisingLoader {
    static constexpr int32_t kGroups = kRows / kWarpThreads, kPanels = kColumns / kPanelColumns;
    static constexpr int32_t kRowLanes = kPanelColumns / kVectorBytes;  // of a row of a panel
    static constexpr int32_t kRowsAtOnce = kWarpThreads / kRowLanes;

   public:
    // Of a lane: its row in each of the block's groups of 32, in elements from the tensor's first, and its descale.
    struct Rows {
        int64_t at[kGroups];
        float descale[kGroups];
    };

    __device__ __forceinline__ DequantisingLoader(const KeyPlaces& places, const GatheredRows& tensor,
                                                  const KeyDescale& descale)
        : places_(places), tensor_(tensor), descale_(descale) {}

    // Where the rows of a block lie. row: the block's first, of the sequence. Of rows that nobody sees: nowhere.
    __device__ __forceinline__ Rows find(const Work& work, int32_t row) const {
        Rows rows;
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g) {
            const int32_t key = row + g * kWarpThreads + ptx::lane_id();
            rows.at[g] = 0;
            rows.descale[g] = 0;
            if (!work.seen.contains(key)) continue;
            const KeyPlace place = place_of(work, key);
            rows.at[g] =
                place.page * tensor_.page_stride + place.row * tensor_.row_stride + work.head_k * tensor_.head_stride;
            rows.descale[g] = descale_of(work, place);
        }
        return rows;
    }

    // Begins to copy them. Zeros where there is no row or no column.
    __device__ __forceinline__ void load(uint16_t* tile, const Work& work, int32_t row, const Rows& rows) const {
        const int32_t vector = ptx::lane_id() % kRowLanes, column = vector * kVectorBytes;
        const uint8_t* data = static_cast<const uint8_t*>(tensor_.data) + column;
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g)
#pragma unroll 1
            for (int32_t first = 0; first < kWarpThreads; first += kRowsAtOnce) {
                const int32_t in_group = first + ptx::lane_id() / kRowLanes, in_block = g * kWarpThreads + in_group;
                const uint8_t* from = data + __shfl_sync(~0u, rows.at[g], in_group);
                const bool exists = work.seen.contains(row + in_block);
                const uint32_t to = ptx::shared_address(tile) + copied_offset(in_block, vector);
#pragma unroll
                for (int32_t panel = 0; panel < kPanels; ++panel)
                    ptx::copy_async(to + panel * kRows * kPanelRowBytes, from + panel * kPanelColumns,
                                    exists && panel * kPanelColumns + column < tensor_.columns);
            }
    }

    // Waits for what load() has begun; then it is there, for wgmma too.
    __device__ __forceinline__ void finish(uint16_t* tile, const Rows& rows) const {
        const int32_t vector = ptx::lane_id() % kRowLanes;
        ptx::wait_for_copies();
#pragma unroll
        for (int32_t g = 0; g < kGroups; ++g)
#pragma unroll 1
            for (int32_t first = 0; first < kWarpThreads; first += kRowsAtOnce) {
                const int32_t in_group = first + ptx::lane_id() / kRowLanes, in_block = g * kWarpThreads + in_group;
                const float descale = __shfl_sync(~0u, rows.descale[g], in_group);
#pragma unroll
                for (int32_t panel = 0; panel < kPanels; ++panel)
                    turn(reinterpret_cast<unsigned char*>(tile) + panel * kRows * kPanelRowBytes, in_block, vector,
                         descale);
            }
        ptx::fence_proxy_async();
        __syncwarp();
    }

   private:
    // Neighbouring rows are in either half of the banks.
    static __device__ __forceinline__ uint32_t copied_offset(int32_t row, int32_t vector) {
        return static_cast<uint32_t>(row * kPanelRowBytes + (vector ^ (row % 2 * kRowLanes)) * kVectorBytes);
    }

    // A vector of 16 elements, to two.
    static __device__ __forceinline__ void turn(unsigned char* panel, int32_t row, int32_t vector, float descale) {
        const uint4 codes = *reinterpret_cast<const uint4*>(panel + copied_offset(row, vector));
        __syncwarp();  // the row's four lanes have read
        uint4 lower, upper;
        dequantise<kType>(codes.x, descale, lower.x, lower.y);
        dequantise<kType>(codes.y, descale, lower.z, lower.w);
        dequantise<kType>(codes.z, descale, upper.x, upper.y);
        dequantise<kType>(codes.w, descale, upper.z, upper.w);
        *reinterpret_cast<uint4*>(panel + swizzled(row, 2 * vector)) = lower;
        *reinterpret_cast<uint4*>(panel + swizzled(row, 2 * vector + 1)) = upper;
    }

    __device__ __forceinline__ KeyPlace place_of(const Work& work, int32_t key) const {
        if (!places_.in_pages) return {places_.dense ? work.sequence : 0, work.first_k + key};
        return place_in_pages(places_, places_.table.of(work.sequence), key);
    }

    __device__ __forceinline__ float descale_of(const Work& work, const KeyPlace& place) const {
        if (descale_.data == nullptr) return 1.0f;
        const int64_t at = descale_.of_rows ? place.page * descale_.batch_stride + place.row * descale_.row_stride
                                            : work.sequence * descale_.batch_stride;
        return __ldg(descale_.data + at + work.head_k * descale_.head_stride);
    }

    const KeyPlaces& places_;
    const GatheredRows& tensor_;
    const KeyDescale& descale_;
};

}  // namespace foveal::sm90
