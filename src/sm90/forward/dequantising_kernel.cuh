// The forward kernel for keys in e4m3, of any form, under q of 16 bits (contract 1.14): that of kernel.cuh but for the
// two producer warps that bring K and V, which turn them into q's type (dequantising_loader.cuh).
#pragma once

#include "sm90/forward/consumer.cuh"
#include "sm90/forward/consumer_scores.cuh"
#include "sm90/forward/cursor.cuh"
#include "sm90/forward/dequantising_kernels.hpp"
#include "sm90/forward/dequantising_loader.cuh"
#include "sm90/forward/params.hpp"
#include "sm90/forward/producer.cuh"
#include "sm90/forward/set_up.cuh"
#include "sm90/forward/shared.cuh"
#include "sm90/forward/tiles.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// K or V, by a warp.
template <ForwardConfig kConfig, int32_t kColumns>
__device__ __forceinline__ void produce_dequantised(Shared<kConfig>& shared, Ring<kConfig.tile.stages>& barriers,
                                                    uint16_t (*tiles)[kConfig.tile.keys * kColumns],
                                                    const ForwardParams& params, const GatheredRows& tensor,
                                                    const KeyDescale& descale) {
    constexpr ForwardTile kTile = kConfig.tile;
    const DequantisingLoader<kConfig.dtype, kTile.keys, kColumns> loader(params.places, tensor, descale);
    for_each_block(shared, params, [&](const Work& work, int32_t block, auto ring) {
        const auto rows = loader.find(work, block * kTile.keys);
        barriers.wait_free(ring);
        loader.load(tiles[ring.slot], work, block * kTile.keys, rows);
        loader.finish(tiles[ring.slot], rows);
        if (ptx::elect_sync()) ptx::mbarrier_arrive(barriers.full[ring.slot][0]);
        __syncwarp();
    });
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_dequantising(Shared<kConfig>& shared, const ForwardMaps& maps,
                                                     const ForwardParams& params, const KeyDescales& descales) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (threadIdx.x == 0) initialise_barriers<kConfig>(shared);
    if (warp != 3) await_set_up<kConfig>();
    if (warp == 0)
        produce_dequantised<kConfig, kConfig.tile.head_dim>(shared, shared.k_ring, shared.k, params, params.places.k,
                                                            descales.k);
    if (warp == 1)
        produce_dequantised<kConfig, kConfig.tile.head_dim_v>(shared, shared.v_ring, shared.v, params, params.places.v,
                                                              descales.v);
    if (warp == 2) produce_q<kConfig>(shared, maps);
    if (warp == 3) produce_work<kConfig>(shared, params);
}

// k_map, v_map: of nothing; they are there so that one list of arguments serves every forward kernel.
template <class Instance>
__global__ void __launch_bounds__(Instance::kConfig.tile.threads(), 1)
    dequantising_forward(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap packed_q_map,
                         const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                         const __grid_constant__ CUtensorMap out_map, const __grid_constant__ ForwardParams params,
                         const __grid_constant__ KeyDescales descales) {
    constexpr ForwardConfig kConfig = Instance::kConfig;
    static_assert(kConfig.any_keys);
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<Shared<kConfig>*>(shared_memory);
    const ForwardMaps maps{q_map, packed_q_map, k_map, v_map, out_map};
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        produce_dequantising<kConfig>(shared, maps, params, descales);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        fill_ones<kConfig>(shared);
        await_set_up<kConfig>();
        Consumer<kConfig>(shared, maps, params, Dropout{}, warpgroup - 1).run();
    }
}

template <class Instance>
const void* dequantising_forward_kernel() {
    static_assert(sizeof(Shared<Instance::kConfig>) <= static_cast<size_t>(shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&dequantising_forward<Instance>);
}

}  // namespace foveal::sm90
