// The forward kernel: one CTA an SM walks its tiles; a tile is 64 query rows for each consumer warpgroup (at d 512: 64
// rows for both, and half of the output's columns for each), of one head or of several that share K and V
// (schedule.hpp).
//
// Schedule (docs/forward.md has the same as a picture):
//   [producer, warp 3]  0. for every tile, ahead of the others: find it, publish what the others need (cursor.cuh);
//                          the first while the others set up.
//   [producer, warp K]  1. for every tile, for every K block: wait until free; load.
//   [producer, warp V]  2. the same for V; rows of a block that no query of the sequence sees are zeroed (0 * NaN).
//   [producer, warp Q]  3. for every tile: wait for a free Q buffer; load Q; with it the consumers get the tile.
//   [consumer]          4. under a bias alone: begin to copy its part of this block to the staging buffer. Wait for the
//                          V block of the K/V block before; take the turn on the tensor cores.
//   [consumer]          5. issue S = Q K^T of this block, then O += P V of the block before, in two groups; two
//                          wgmmas before the end pass the turn to the next warpgroup.
//   [consumer]          6. S done: release K (and after a tile's last block a single Q buffer); options; mask; S
//                          becomes exponents (under softcap alone and without a mask, in 7 and 8).
//   [consumer]          7. first group of P V done: its registers take the first of the new P; some more exponentials
//                          wait in registers of their own; wait for the next K block.
//   [consumer]          8. P V done: release V; the rest of P; sums; rescale in the rare case. Under dropout, what is
//                          dropped of P becomes 0.
//   [consumer]          9. at a tile's end, 5 issues the next tile's first Q K^T together with this tile's last P V;
//                          the finished O is rounded and staged under the new exponentials and goes out after them.
//   [consumer]         10. blocks that only other rows of the tile need, and tiles without rows of this warpgroup: wait
//                          for them, release them.
#pragma once

#include "sm90/forward/consumer.cuh"
#include "sm90/forward/consumer_scores.cuh"
#include "sm90/forward/cursor.cuh"
#include "sm90/forward/kernels.hpp"
#include "sm90/forward/params.hpp"
#include "sm90/forward/producer.cuh"
#include "sm90/forward/set_up.cuh"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce(Shared<kConfig>& shared, const ForwardMaps& maps, const ForwardParams& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / 32);
    if (threadIdx.x == 0) initialise_barriers<kConfig>(shared);
    if (warp != 3) await_set_up<kConfig>();
    if constexpr (kConfig.any_keys) {
        if (warp == 0) produce_any_k<kConfig>(shared, maps, params);
        if (warp == 1) produce_any_v<kConfig>(shared, maps, params);
    } else {
        if (warp == 0) produce_k<kConfig>(shared, maps, params);
        if (warp == 1) produce_v<kConfig>(shared, maps, params);
    }
    if (warp == 2) produce_q<kConfig>(shared, maps);
    if (warp == 3) produce_work<kConfig>(shared, params);
}

template <class Instance>
__global__ void __launch_bounds__(Instance::kConfig.tile.threads(), 1)
    forward(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap packed_q_map,
            const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
            const __grid_constant__ CUtensorMap out_map, const __grid_constant__ ForwardParams params,
            const __grid_constant__ Dropout dropout) {
    constexpr ForwardConfig kConfig = Instance::kConfig;
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<Shared<kConfig>*>(shared_memory);
    const ForwardMaps maps{q_map, packed_q_map, k_map, v_map, out_map};
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        produce<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        fill_ones<kConfig>(shared);
        await_set_up<kConfig>();
        Consumer<kConfig>(shared, maps, params, dropout, warpgroup - 1).run();
    }
}

template <class Instance>
const void* forward_kernel() {
    static_assert(sizeof(Shared<Instance::kConfig>) <= static_cast<size_t>(shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&forward<Instance>);
}

}  // namespace foveal::sm90
