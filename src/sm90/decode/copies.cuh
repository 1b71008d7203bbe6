// How blocks of K and V get to shared memory: in boxes, by the copy engine, where a page holds whole boxes of eight
// rows or more, else row by row, by all threads of a warpgroup.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sm90/decode/key_layout.cuh"
#include "sm90/decode/params.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/async_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/panel.cuh"

namespace foveal::sm90 {

template <DecodeTile kTile>
using DecodePosition = RingPosition<kTile.slots>;

// Of one piece; a warp. A block is so many boxes, of box_rows keys and a panel each, and every lane has one of them.
template <DecodeConfig kConfig>
class BoxCopies {
    static constexpr DecodeTile kTile = kConfig.tile;
    static constexpr int32_t kPanels = kTile.slot_panels();

   public:
    // Asks for the table's entries, and does not wait for them. The piece has blocks.
    __device__ __forceinline__ BoxCopies(const DecodeParams& params, const FoundKeys& work, int32_t head_k,
                                         int32_t lane)
        : params_(params),
          seen_(work.seen.keys),
          head_(head_k),
          lane_(lane),
          panel_(lane % kPanels),
          row_in_slot_(lane / kPanels * params.box_rows) {
        const int32_t first = (work.seen.first_block + work.piece.begin) * kBlockKeys;
        key_ = first + row_in_slot_;
        if (params.table.entries == nullptr) {
            page_ = params.lengths_k.cu_seqlens != nullptr ? 0 : work.number;
            row_ = work.first_k + key_;
            return;
        }
        entries_ = params.table.of(work.number);
        page_ = key_ / params.by_page_size;
        row_ = key_ - page_ * params.table.page_size;
        const int32_t end = min_i32(seen_.end, first + (work.piece.end - work.piece.begin) * kBlockKeys);
        first_entry_ = max_i32(seen_.begin, first) / params.by_page_size;
        last_entry_ = (end - 1) / params.by_page_size;
        // Lane i has entries i of the 32 from here on, and of the 32 after those.
        window_ = first / params.by_page_size;
        near_ = entry(window_ + lane_);
        far_ = entry(window_ + kWarpThreads + lane_);
    }

    // K and V of the next block to the ring's next slots.
    __device__ __forceinline__ void copy(DecodeShared<kConfig>& shared, const DecodeMaps& maps,
                                         DecodePosition<kTile>& ring) {
        const bool is_needed = key_ < seen_.end && key_ + params_.box_rows > seen_.begin;
        const int32_t found = page_now(), page = is_needed ? found : params_.absent_page;
#pragma unroll
        for (int32_t i = 0; i < kTile.slots_of_block(); ++i) copy_box(shared, maps.k, params_.k_descale, ring, page, i);
#pragma unroll
        for (int32_t i = 0; i < kTile.slots_of_block(); ++i) copy_box(shared, maps.v, params_.v_descale, ring, page, i);
        advance();
    }

   private:
    __device__ __forceinline__ int32_t entry(int32_t n) const {
        return n >= first_entry_ && n <= last_entry_ ? static_cast<int32_t>(__ldg(entries_ + n)) : 0;
    }

    // The page of this lane's box. All lanes ask.
    __device__ __forceinline__ int32_t page_now() {
        if (params_.table.entries == nullptr) return page_;
        if (__shfl_sync(~0u, page_, 0) >= window_ + kWarpThreads) {
            window_ += kWarpThreads;
            near_ = far_;
            far_ = entry(window_ + kWarpThreads + lane_);
        }
        const int32_t n = page_ - window_, near = __shfl_sync(~0u, near_, n % kWarpThreads),
                      far = __shfl_sync(~0u, far_, n % kWarpThreads);
        return n < kWarpThreads ? near : far;
    }

    // i: which of the block's slots.
    __device__ __forceinline__ void copy_box(DecodeShared<kConfig>& shared, const CUtensorMap& map,
                                             const DecodeDescale& descale, DecodePosition<kTile>& ring, int32_t page,
                                             int32_t i) {
        shared.ring.wait_free(ring);
        uint64_t& full = shared.ring.full[ring.slot][0];
        if (lane_ == 0) ptx::mbarrier_arrive_expect_tx(full, kTile.slot_bytes());
        __syncwarp();
        if (row_in_slot_ < kBlockKeys)
            ptx::tensor_load(shared.slots[ring.slot] + (panel_ * kBlockKeys + row_in_slot_) * kTile.panel_row_bytes(),
                             map, full, i * kTile.slot_channels() + panel_ * kTile.panel_channels(), row_, head_, page);
        if constexpr (kTile.dequantises())
            if (params_.has_row_descales) copy_descales(shared.descales.of[ring.slot], descale, page, full);
        ring.advance();
    }

    // Of all keys of the block; each lane knows the page of its box. Of keys that no query sees: zeros.
    __device__ __forceinline__ void copy_descales(float* to, const DecodeDescale& descale, int32_t page,
                                                  uint64_t& full) const {
        if (descale.of_rows) {
            const int32_t block = __shfl_sync(~0u, key_, 0), log2_rows = __ffs(params_.box_rows) - 1;
#pragma unroll 1
            for (int32_t key = lane_; key < kBlockKeys; key += kWarpThreads) {
                const int32_t box = key >> log2_rows, of_page = __shfl_sync(~0u, page, box * kPanels),
                              row = __shfl_sync(~0u, row_, box * kPanels) + key - (box << log2_rows);
                const bool exists = seen_.contains(block + key);
                ptx::copy_async_4(ptx::shared_address(to + key),
                                  descale.data + (exists ? of_page * descale.batch_stride + row * descale.row_stride +
                                                               head_ * descale.head_stride
                                                         : 0),
                                  exists);
            }
        }
        ptx::arrive_when_copied(full);
    }

    __device__ __forceinline__ void advance() {
        key_ += kBlockKeys;
        if (params_.table.entries == nullptr) {
            row_ += kBlockKeys;
            return;
        }
        page_ += params_.block_pages;
        row_ += params_.block_rows;
        if (row_ < params_.table.page_size) return;
        row_ -= params_.table.page_size;
        ++page_;
    }

    const DecodeParams& params_;
    const Range seen_;
    const int32_t head_, lane_, panel_, row_in_slot_;
    int32_t key_;         // of this lane's box: the first, ...
    int32_t page_, row_;  // ... in which of the sequence's pages it is (not in pages: of the tensor), and in which row
    const uint32_t* entries_ = nullptr;
    int32_t first_entry_ = 0, last_entry_ = -1, window_ = 0, near_ = 0, far_ = 0;
};

// Of one piece; three warps, each of which copies every third of the few neighbouring rows that make 32 vectors. Where
// the rows of a block lie is known to the lanes: lane i has found it of key i, and of key 32 + i.
template <DecodeConfig kConfig>
class RowCopies {
    static constexpr DecodeTile kTile = kConfig.tile;
    static constexpr int32_t kVectorChannels = kVectorBytes / kTile.key_bytes,
                             kVectors = kTile.slot_channels() / kVectorChannels,
                             kPanelVectors = kTile.panel_row_bytes() / kVectorBytes;
    static constexpr int32_t kRowsAtOnce = kWarpThreads / kVectors;  // of a warp
    static_assert(kRowsAtOnce * kVectors == kWarpThreads);

    // A page, or sequence, and a row of it.
    struct Place {
        int32_t page, row;
    };
    struct Places {
        Place of[kBlockKeys / kWarpThreads];
    };

   public:
    // warp: of those that copy.
    __device__ __forceinline__ RowCopies(const DecodeParams& params, const DecodeWork& work, int32_t head_k,
                                         int32_t warp, int32_t lane)
        : params_(params),
          seen_(work.seen.keys),
          head_(head_k),
          warp_(warp),
          lane_(lane),
          vector_(lane % kVectors),
          row_(lane / kVectors),
          key_((work.seen.first_block + work.piece.begin) * kBlockKeys),
          end_((work.seen.first_block + min_i32(work.piece.end, work.seen.blocks)) * kBlockKeys),
          page_(params.lengths_k.cu_seqlens != nullptr ? 0 : work.number),
          first_k_(work.sequence.first_k) {
        if (params.table.entries != nullptr) entries_ = params.table.of(work.number);
        next_ = places_of(key_);
    }

    // As BoxCopies.
    __device__ __forceinline__ void copy(DecodeShared<kConfig>& shared, const DecodeMaps&,
                                         DecodePosition<kTile>& ring) {
        const Places places = next_;
        next_ = places_of(key_ + kBlockKeys);  // on their way while this block's rows are
#pragma unroll
        for (int32_t i = 0; i < kTile.slots_of_block(); ++i)
            copy_rows(shared, params_.k, params_.k_descale, places, ring, i);
#pragma unroll
        for (int32_t i = 0; i < kTile.slots_of_block(); ++i)
            copy_rows(shared, params_.v, params_.v_descale, places, ring, i);
        key_ += kBlockKeys;
    }

   private:
    __device__ __forceinline__ Places places_of(int32_t block) const {
        Places places;
#pragma unroll
        for (int32_t i = 0; i < kBlockKeys / kWarpThreads; ++i) {
            const int32_t key = block + i * kWarpThreads + lane_;
            if (entries_ == nullptr) {
                places.of[i] = {page_, first_k_ + key};
            } else {
                const int32_t n = key / params_.by_page_size;
                const bool is_needed = seen_.contains(key) && key < end_;
                places.of[i] = {is_needed ? static_cast<int32_t>(__ldg(entries_ + n)) : 0,
                                key - n * params_.table.page_size};
            }
        }
        return places;
    }

    __device__ __forceinline__ void copy_rows(DecodeShared<kConfig>& shared, const DecodeRows& rows,
                                              const DecodeDescale& descale, const Places& places,
                                              DecodePosition<kTile>& ring, int32_t slot) {
        using Stored = std::conditional_t<kTile.dequantises(), uint8_t, uint16_t>;
        shared.ring.wait_free(ring);
        const int32_t channel = slot * kTile.slot_channels() + vector_ * kVectorChannels;
        const auto* data = static_cast<const Stored*>(rows.data) + head_ * rows.head_stride + channel;
        const uint32_t to = ptx::shared_address(shared.slots[ring.slot] +
                                                vector_ / kPanelVectors * kBlockKeys * kTile.panel_row_bytes());
#pragma unroll 2
        for (int32_t first = warp_ * kRowsAtOnce; first < kBlockKeys; first += kRowLoaderWarps * kRowsAtOnce) {
            const bool is_near = first < kWarpThreads;
            const int32_t row = first + row_;
            const Place place{__shfl_sync(~0u, is_near ? places.of[0].page : places.of[1].page, row % kWarpThreads),
                              __shfl_sync(~0u, is_near ? places.of[0].row : places.of[1].row, row % kWarpThreads)};
            const bool exists = seen_.contains(key_ + row) && channel < rows.columns;
            const int64_t from = exists ? place.page * rows.batch_stride + place.row * rows.row_stride : 0;
            ptx::copy_async(to + key_vector_offset<kTile>(row, vector_ % kPanelVectors), data + from, exists);
        }
        if constexpr (kTile.dequantises())
            if (descale.of_rows && warp_ == 0) copy_descales(shared.descales.of[ring.slot], descale, places);
        ptx::arrive_when_copied(shared.ring.full[ring.slot][0]);
        ring.advance();
    }

    __device__ __forceinline__ void copy_descales(float* to, const DecodeDescale& descale, const Places& places) const {
#pragma unroll
        for (int32_t i = 0; i < kBlockKeys / kWarpThreads; ++i) {
            const int32_t key = i * kWarpThreads + lane_;
            const bool exists = seen_.contains(key_ + key);
            const int64_t from = exists ? places.of[i].page * descale.batch_stride +
                                              places.of[i].row * descale.row_stride + head_ * descale.head_stride
                                        : 0;
            ptx::copy_async_4(ptx::shared_address(to + key), descale.data + from, exists);
        }
    }

    const DecodeParams& params_;
    const Range seen_;
    const int32_t head_, warp_, lane_, vector_, row_;
    int32_t key_;  // the block's first
    const int32_t end_, page_, first_k_;
    const uint32_t* entries_ = nullptr;
    Places next_;
};

}  // namespace foveal::sm90
