// The warpgroup that loads: steps 1 to 4 of the decode kernel's schedule (kernel.cuh). Its first warp finds the pieces
// and announces them, with their Q; the others bring their K and V.
#pragma once

#include <cstdint>

#include "sm90/decode/column_scores.cuh"
#include "sm90/decode/copies.cuh"
#include "sm90/decode/nodes.cuh"
#include "sm90/decode/params.hpp"
#include "sm90/decode/pieces.cuh"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// ---- the warps that find the pieces ---------------------------------------------------------------------------------
// One announces them; where the copy engine brings the keys, another finds them too and asks for boxes, and so need not
// be told. Both run the same instructions, which are fetched once.

template <DecodeConfig kConfig>
class DecodeFinder {
    static constexpr DecodeTile kTile = kConfig.tile;

   public:
    __device__ __forceinline__ DecodeFinder(DecodeShared<kConfig>& shared, const DecodeParams& params,
                                            const DecodeMaps& maps, bool copies, int32_t lane)
        : shared_(shared), params_(params), maps_(maps), copies_(copies), lane_(lane), pieces_(params, lane) {}

    // Before the barriers are there.
    __device__ __forceinline__ void prepare() {
        pieces_.survey();
        if (!copies_ && lane_ == 0) shared_.deal = pieces_.deal();
    }

    __device__ __forceinline__ void run() {
        bool is_first = true;
        while (pieces_.next()) {
            if (copies_) {
                copy_keys();
                continue;
            }
            const DecodeWork& work = announce();
            if (kConfig.computes() && is_first && !work.is_whole()) {
                // The first piece's neighbours are looked up while its keys are on their way.
                map_nodes<kTile>(shared_.map, shared_.deal, params_, work, lane_);
                if (lane_ == 0) ptx::mbarrier_arrive(shared_.map_ready);
            }
            is_first = false;
        }
        if (copies_) return;
        announce_end();
        ptx::wait_for_copies();
    }

   private:
    __device__ __forceinline__ void copy_keys() {
        const FoundKeys keys = pieces_.found();
        if (keys.blocks() <= 0) return;
        BoxCopies<kConfig> copies(params_, keys, keys.head / params_.by_column_parts, lane_);
#pragma unroll 1
        for (int32_t left = keys.blocks(); left > 0; --left) copies.copy(shared_, maps_, ring_);
    }

    __device__ __forceinline__ const DecodeWork& announce() {
        shared_.work_ring.wait_free(works_);
        DecodeWork& work = shared_.works[works_.slot];
        pieces_.describe(work);
        __syncwarp();
        if (lane_ == 0) ptx::mbarrier_arrive(shared_.work_ring.full[works_.slot][0]);
        copy_queries(work, shared_.queries[works_.slot]);
        ptx::arrive_when_copied(shared_.queries_full[works_.slot]);
        works_.advance();
        return work;
    }

    __device__ __forceinline__ void announce_end() {
        shared_.work_ring.wait_free(works_);
        if (lane_ != 0) return;
        shared_.works[works_.slot].number = -1;
        ptx::mbarrier_arrive(shared_.work_ring.full[works_.slot][0]);
    }

    // Columns that there are not, and channels, become zeros.
    __device__ __forceinline__ void copy_queries(const DecodeWork& work, uint16_t* to) const {
        constexpr int32_t kRowsOfQ = kTile.octets() * kOctetColumns, kVectors = kTile.head_dim / kVectorColumns;
        const PieceColumns columns(params_, work, kTile.columns);
        const auto* q = static_cast<const uint16_t*>(params_.q) + work.number * params_.q_batch_stride;
        constexpr int32_t kAtOnce = kTile.dequantises() ? 1 : 2;  // what fits the registers
#pragma unroll kAtOnce
        for (int32_t n = lane_; n < kRowsOfQ * kVectors; n += kWarpThreads) {
            const int32_t column = n / kVectors, vector = n % kVectors;
            const bool exists = column < columns.count && vector * kVectorColumns < params_.k.columns;
            const int64_t from =
                exists ? (work.sequence.first_q + columns.query(params_, column)) * params_.q_row_stride +
                             columns.head_q(params_, column) * params_.q_head_stride + vector * kVectorColumns
                       : 0;
            const uint32_t panel = ptx::shared_address(to + vector / kRowVectors * kRowsOfQ * kPanelColumns);
            if constexpr (kTile.dequantises())
                copy_for_e4m3(panel, column, vector % kRowVectors, q + from, exists);
            else
                ptx::copy_async(panel + swizzled(column, vector % kRowVectors), q + from, exists);
        }
    }

    // Lane t of a row of keys in e4m3 has channels 4 t to 4 t + 3 of each 16 at once, which take the places of 2 t,
    // 2 t + 1, 2 t + 8 and 2 t + 9 in a product (strip.cuh): so Q's are put into these places, pair by pair.
    static __device__ __forceinline__ void copy_for_e4m3(uint32_t panel, int32_t column, int32_t vector,
                                                         const uint16_t* from, bool exists) {
        constexpr int32_t kPairs = kVectorColumns / 2;
#pragma unroll
        for (int32_t i = 0; i < kPairs; ++i) {
            const int32_t pair = vector % 2 * kPairs + i;
            ptx::copy_async_4(panel + swizzled(column, vector / 2 * 2 + pair % 2) + static_cast<uint32_t>(pair / 2 * 4),
                              from + 2 * i, exists);
        }
    }

    DecodeShared<kConfig>& shared_;
    const DecodeParams& params_;
    const DecodeMaps& maps_;
    const bool copies_;
    const int32_t lane_;
    Pieces<kConfig> pieces_;
    RingPosition<kTile.works> works_;
    RingPosition<kTile.slots> ring_;
};

// ---- the warps that copy rows ---------------------------------------------------------------------------------------

// warp: of those that copy.
template <DecodeConfig kConfig>
__device__ __forceinline__ void copy_rows(DecodeShared<kConfig>& shared, const DecodeMaps& maps,
                                          const DecodeParams& params, int32_t warp, int32_t lane) {
    constexpr DecodeTile kTile = kConfig.tile;
    RingPosition<kTile.slots> ring;
    for (RingPosition<kTile.works> works;; works.advance()) {
        shared.work_ring.wait_full(works);
        const DecodeWork work = shared.works[works.slot];
        if (work.number < 0) break;
        ptx::mbarrier_arrive(shared.work_ring.free[works.slot][0]);
        const int32_t blocks = min_i32(work.piece.end, work.seen.blocks) - work.piece.begin;
        if (blocks <= 0) continue;
        RowCopies<kConfig> copies(params, work, work.head / params.by_column_parts, warp, lane);
#pragma unroll 1
        for (int32_t left = blocks; left > 0; --left) copies.copy(shared, maps, ring);
    }
    ptx::wait_for_copies();
}

}  // namespace foveal::sm90
