// The backward kernel's shared memory and barriers.
#pragma once

#include <cstdint>

#include "problem/dropout.hpp"
#include "sm90/backward/schedule.hpp"
#include "sm90/backward/tiles.hpp"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// The CTA's named barriers, of which the hardware has 16. Barrier 0 joins all threads when the CTA has set itself up
// (it is also that of __syncthreads()). By the others the two consumer warpgroups tell each other, for every step, that
// the own dS is stored, and that the own dQ has been computed, so that the other may store its next dS. Whoever tells
// does not wait; so neighbouring steps have barriers of their own, or one could be armed again before it is observed.
enum NamedBarrier : int32_t { kBackwardSetUpBarrier = 0, kStoredBarrier = 1, kReadBarrier = 5 };
__device__ __forceinline__ int32_t stored_barrier(int32_t warpgroup, int32_t parity) {
    return kStoredBarrier + 2 * warpgroup + parity;
}
__device__ __forceinline__ int32_t read_barrier(int32_t warpgroup, int32_t parity) {
    return kReadBarrier + 2 * warpgroup + parity;
}

template <BackwardConfig kConfig>
struct BackwardShared {
    static constexpr BackwardTile kTile = kConfig.tile;
    alignas(1024) uint16_t k[kTile.key_buffers][kTile.key_elements()];
    uint16_t v[kTile.key_elements()];
    uint16_t q[kTile.query_buffers][kTile.query_elements()];
    uint16_t dout[kTile.dout_buffers][kTile.query_elements()];
    uint16_t ds[kBackwardKeys * kBackwardQueries];  // a row for each key
    float dq[kBackwardConsumers][kTile.dq_elements()];
    float neg_lse[kTile.query_buffers][kBackwardQueries];
    float neg_delta[kTile.dout_buffers][kBackwardQueries];
    BackwardTask tasks[kTaskSlots];
    Ring<kTaskSlots> task_ring;
    Ring<kTile.key_buffers> k_ring;
    Ring<1> v_ring;
    Ring<kTile.query_buffers> q_ring;     // with neg_lse
    Ring<kTile.dout_buffers> dout_ring;   // with neg_delta
    Ring<1> dq_ring[kBackwardConsumers];  // full: staged by the warpgroup; free: read by the copy engine
    uint64_t landed[2];                   // what still has rows to be zeroed, of each producer warp
    PhiloxKey dropout_key;                // of the call; only where weights are dropped
};

}  // namespace foveal::sm90
