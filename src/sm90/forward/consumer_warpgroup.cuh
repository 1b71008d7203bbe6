// A consumer warpgroup among the warps of its CTA, in the 16-bit forward kernel and in that over e4m3: the barriers
// through which it shares buffers and the tensor cores with them, the tile that it is at, and its rows there. What it
// computes is in the kernels' consumer.cuh.
#pragma once

#include "sm90/forward/params.hpp"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/forward/walk.hpp"
#include "sm90/forward/work.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/fragment.hpp"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// Self: the kernel's consumer, which derives from this. SharedMemory: of the CTA.
template <class Self, class SharedMemory, ForwardTile kTile, WorkTraits kTraits>
class ConsumerWarpgroup : public Walk<Self, kTile> {
    using Base = Walk<Self, kTile>;
    static constexpr int32_t kTurnThreads = 2 * kWarpgroupThreads;

   protected:
    using Base::works_;

    __device__ __forceinline__ ConsumerWarpgroup(SharedMemory& shared, const ForwardParams& params, int32_t warpgroup)
        : shared_(shared),
          params_(params),
          warpgroup_(warpgroup),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / 32)),
          query_tile_(kTile.shares_rows ? 0 : warpgroup) {}

    // Barriers.
    __device__ __forceinline__ void wait_keys(const RingPosition<kTile.stages>& at) { shared_.k_ring.wait_full(at); }
    __device__ __forceinline__ void wait_queries(const RingPosition<kTile.query_buffers>& at) {
        shared_.q_ring.wait_full(at, query_tile_);
    }
    __device__ __forceinline__ void release_keys(int32_t slot) { shared_.k_ring.release(slot); }
    __device__ __forceinline__ void free_queries(int32_t slot) { shared_.q_ring.release(slot, query_tile_); }
    // After a tile's last read of its Work, by every thread for itself.
    __device__ __forceinline__ void free_work(int32_t slot) { ptx::mbarrier_arrive(shared_.work_ring.free[slot][0]); }

    // The tensor cores are taken in turn, so that one warpgroup's softmax runs under the others' products.
    __device__ __forceinline__ void take_turn() { take_turn_of(warpgroup_); }
    __device__ __forceinline__ void take_last_turn() {
        take_turn_of(uniform(warpgroup_));  // computed anew: no register for it over the whole loop
    }
    __device__ __forceinline__ void pass_turn() { pass_turn_of(warpgroup_); }
    static __device__ __forceinline__ void take_turn_of(int32_t warpgroup) {
        if constexpr (kTile.takes_turns) ptx::barrier_sync(turn_barrier(warpgroup), kTurnThreads);
    }
    static __device__ __forceinline__ void pass_turn_of(int32_t warpgroup) {
        if constexpr (kTile.takes_turns)
            ptx::barrier_arrive(turn_barrier(warpgroup + 1 == kTile.consumers ? 0 : warpgroup + 1), kTurnThreads);
    }

    static __device__ __forceinline__ void converge() { __syncwarp(); }
    static __device__ __forceinline__ bool any_of_warp(bool condition) { return __any_sync(~0u, condition); }

    // This warp's staging rows may be overwritten.
    __device__ __forceinline__ void wait_staging() {
        if (ptx::elect_sync()) ptx::bulk_wait_group_read();
        __syncwarp();
    }
    static __device__ __forceinline__ void finish_stores() {
        ptx::bulk_wait_group_read();  // their shared memory goes with the CTA
    }

    // The tile that this warpgroup is at: the blocks that it needs, and Work::computed; how many blocks it has in all.
    __device__ __forceinline__ uint32_t read_tile(BlockRange& blocks) const {
        const Work& work = shared_.work[works_.slot];
        const BlockRange& own = own_blocks();
        blocks.visit = {uniform(own.visit.begin), uniform(own.visit.end)};
        blocks.unmasked = {uniform(own.unmasked.begin), uniform(own.unmasked.end)};
        return uniform(work.computed);
    }
    __device__ __forceinline__ const OwnWork& own_work() const { return shared_.own_work[works_.slot][query_tile_]; }
    __device__ __forceinline__ const BlockRange& own_blocks() const {
        if constexpr (kTile.has_own_blocks())
            return own_work().blocks;
        else
            return shared_.work[works_.slot].blocks;
    }
    __device__ __forceinline__ int32_t blocks_of_tile() const {
        return uniform(shared_.work[works_.slot].blocks.visit.size());
    }
    __device__ __forceinline__ bool is_own(uint32_t computed) const { return (computed >> query_tile_ & 1) != 0; }
    __device__ __forceinline__ int32_t warpgroup() const { return warpgroup_; }

    // This warp's rows, in the tile that it is at, or in that of a slot; and how many the sequence has from this
    // thread's first on.
    __device__ __forceinline__ const Segment& rows() const { return rows_in(works_.slot); }
    __device__ __forceinline__ const Segment& rows_in(int32_t slot) const {
        return shared_.segments[slot][query_tile_ * kWarpgroupWarps + warp_];
    }
    __device__ __forceinline__ int32_t rows_left() const {
        return shared_.work[works_.slot].len_q - rows().query - Fragment::first_row(ptx::lane_id());
    }

    // The i-th of blocks.visit, and its first key.
    __device__ __forceinline__ int32_t block_of(const BlockRange& blocks, int32_t i) const {
        return block_of_step<kTraits>(params_, blocks.visit, i);
    }
    __device__ __forceinline__ int32_t first_key(const BlockRange& blocks, int32_t i) const {
        return block_of(blocks, i) * kTile.keys;
    }

    SharedMemory& shared_;
    const ForwardParams& params_;
    const int32_t warpgroup_, warp_;
    const int32_t query_tile_;  // which of the CTA's 64-row tiles of Q is this warpgroup's
};

}  // namespace foveal::sm90
