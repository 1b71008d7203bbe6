// Rings of buffers in shared memory, which some warps fill and others read.
#pragma once

#include <cstdint>

#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/ring_position.hpp"

namespace foveal::sm90 {

// One arrival of a converged warp, which has read a buffer. wgmma and the copy engine read for a warp; what its threads
// read themselves each of them releases, since racecheck follows no warp.
__device__ __forceinline__ void release_by_warp(uint64_t& free) {
    if (ptx::elect_sync()) ptx::mbarrier_arrive(free);
}

// The barriers of a ring. A buffer is in kParts that are filled and freed one by one.
template <int32_t kSize, int32_t kParts = 1>
struct Ring {
    using Position = RingPosition<kSize>;

    uint64_t full[kSize][kParts], free[kSize][kParts];

    // Of one slot; by one thread, before anybody waits. fillers, readers: arrivals that make a part full, and free
    // again.
    __device__ __forceinline__ void initialise(int32_t slot, uint32_t fillers, uint32_t readers) {
        for (int32_t part = 0; part < kParts; ++part) {
            ptx::mbarrier_init(full[slot][part], fillers);
            ptx::mbarrier_init(free[slot][part], readers);
        }
    }

    __device__ __forceinline__ void wait_full(const Position& at, int32_t part = 0) {
        ptx::mbarrier_wait(full[at.slot][part], at.parity);
    }
    __device__ __forceinline__ void wait_free(const Position& at, int32_t part = 0) {
        ptx::mbarrier_wait(free[at.slot][part], at.parity ^ 1);
    }
    __device__ __forceinline__ void release(int32_t slot, int32_t part = 0) { release_by_warp(free[slot][part]); }
    // Of a buffer with numbers that the warp's threads read as well.
    __device__ __forceinline__ void release_read(int32_t slot) {
        __syncwarp();
        release(slot);
    }
};

}  // namespace foveal::sm90
