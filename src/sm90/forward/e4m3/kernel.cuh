// The forward kernel over e4m3: q, k and v in e4m3, P rounded to e4m3, the output in 16 bits. The walk through the
// tiles and its steps are those of the 16-bit kernel (forward/kernel.cuh); docs/fp8.md has what differs and why.
//
//   [producer, warp 3]      0. for every tile, ahead of the others: find it, publish it, its descales among it.
//   [producer, warp 0]      1. for every tile: load Q; for every block of it: load K, load V, each when its place is
//                              free.
//   [producer, warps 1, 2]  2. for every block of V: transpose it, each warp half of the channels, for the tensor cores
//                              take 8-bit operands with neighbouring keys side by side alone; keys that no query of the
//                              sequence sees become zeros.
//   [consumer]              4. wait for the transposed V of the block before; take the turn on the tensor cores.
//   [consumer]              5. issue S = Q K^T of this block, then P V of the block before, its first 64 channels; pass
//                              the turn.
//   [consumer]              6. S done: release K; masks; S becomes exponents.
//   [consumer]              7. half of the new P; the first part of P V done: it is added to O in fp32, and the next
//                              part issued in its place.
//   [consumer]              8. P V done: added to O; release V; the rest of P; rescale in the rare case.
//   [consumer]              9. as in the 16-bit kernel, and 10.
#pragma once

#include "sm90/forward/e4m3/consumer.cuh"
#include "sm90/forward/e4m3/kernels.hpp"
#include "sm90/forward/e4m3/params.hpp"
#include "sm90/forward/e4m3/producer.cuh"
#include "sm90/forward/e4m3/shared.cuh"
#include "sm90/forward/e4m3/tiles.hpp"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

template <E4m3Config kConfig>
__device__ __forceinline__ void produce(E4m3Shared<kConfig>& shared, const ForwardMaps& maps,
                                        const E4m3Params& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / 32);
    if (threadIdx.x == 0) initialise_barriers<kConfig>(shared);
    if (warp == 3) return produce_work<kConfig>(shared, params);
    await_set_up<kConfig>();
    if (warp == 0)
        load_tiles<kConfig>(shared, maps, params.forward);
    else
        transpose_tiles<kConfig>(shared, params.forward, warp - 1);
}

template <class Instance>
__global__ void __launch_bounds__(Instance::kConfig.walk().threads(), 1)
    forward_e4m3(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap packed_q_map,
                 const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
                 const __grid_constant__ CUtensorMap out_map, const __grid_constant__ E4m3Params params) {
    constexpr E4m3Config kConfig = Instance::kConfig;
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<E4m3Shared<kConfig>*>(shared_memory);
    const ForwardMaps maps{q_map, packed_q_map, k_map, v_map, out_map};
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.walk().producer_registers>();
        produce<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.walk().consumer_registers>();
        fill_ones<kConfig>(shared);
        await_set_up<kConfig>();
        E4m3Consumer<kConfig>(shared, maps, params.forward, warpgroup - 1).run();
    }
}

template <class Instance>
const void* forward_e4m3_kernel() {
    static_assert(sizeof(E4m3Shared<Instance::kConfig>) <= static_cast<size_t>(shared_bytes(Instance::kConfig)));
    return reinterpret_cast<const void*>(&forward_e4m3<Instance>);
}

}  // namespace foveal::sm90
