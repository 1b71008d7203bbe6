// The decode kernel: few queries, many keys. As many CTAs as fit on the GPU at once share the keys of all sequences
// (split.hpp); what bounds them is the memory.
//
// Schedule (docs/decode.md):
//   [finding warp]    1. while the others set up: read the lengths, work out which pieces are this CTA's.
//   [finding warp]    2. for every piece: wait until its place is free; announce it; load its Q. Of the first one, look
//                        up where its sequence's other nodes will lie.
//   [copying warps]   3. for every block of a piece: wait until a slot is free; load K; the same for V.
//   [computing warps] 4. for every piece: wait for it and its Q, which stays in registers.
//   [computing warps] 5. for every block: wait for K; 16 keys of it by all columns; release K; exponentials; wait for
//                        V; add to this warp's part of the output; release V. No warp waits for another.
//   [computing warps] 6. at a leaf's end: the warps' parts become one, through shared memory; nodes whose siblings are
//                        there become their parents.
//   [computing warps] 7. nodes that have no sibling in this piece go to the workspace.
//   [computing warps] 8. at a piece's end, if it is not the whole sequence: add its blocks to the sequence's count.
//   [computing warps] 9. whoever completes it reads all nodes of the sequence, finishes the tree, and writes the
//                        output.
#pragma once

#include "sm90/decode/consumer.cuh"
#include "sm90/decode/kernels.hpp"
#include "sm90/decode/params.hpp"
#include "sm90/decode/producer.cuh"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// Where two CTAs share an SM, each thread is given 128 registers: those that compute need more, those that load less.
template <DecodeConfig kConfig>
__device__ __forceinline__ void take_registers(bool computes) {
    if constexpr (kConfig.tile.ctas == 2) {
        if (computes)
            ptx::setmaxnreg_inc<kDecodeConsumerRegisters>();
        else
            ptx::setmaxnreg_dec<kDecodeProducerRegisters>();
    }
}

// Global memory is touched after this only (sm90/forward/set_up.cuh has more on it): the kernel before it, or, if that
// writes other rows and is waited for at the end, all kernels before that, without whose end it would not have let this
// one start.
__device__ __forceinline__ void await_kernel_before(const DecodeParams& params) {
    if (!params.beside) cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
}

template <class Instance>
__global__ void __launch_bounds__(kDecodeThreads, Instance::kConfig.tile.ctas)
    decode(const __grid_constant__ CUtensorMap k_map, const __grid_constant__ CUtensorMap v_map,
           const __grid_constant__ DecodeParams params) {
    constexpr DecodeConfig kConfig = Instance::kConfig;
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<DecodeShared<kConfig>*>(shared_memory);
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (warp < kWarpgroupWarps) {
        take_registers<kConfig>(true);
        initialise_barriers<kConfig>(shared, params.box_rows > 0, params.has_row_descales, warp);
        await_kernel_before(params);
        ptx::barrier_sync(kDecodeSetUp, kDecodeThreads);
        DecodeConsumer<kConfig>(shared, params).run();
        if (params.beside) cudaGridDependencySynchronize();  // who waits for this kernel waits for that one too
        return;
    }
    take_registers<kConfig>(false);
    await_kernel_before(params);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpThreads, loader = warp - kWarpgroupWarps - 1;
    const DecodeMaps maps{k_map, v_map};
    const bool copies_boxes = params.box_rows > 0 && loader == 0;
    if (loader < 0 || copies_boxes) {
        if (copies_boxes && lane == 0) {
            ptx::prefetch_tensor_map(maps.k);
            ptx::prefetch_tensor_map(maps.v);
        }
        DecodeFinder<kConfig> finder(shared, params, maps, copies_boxes, lane);
        finder.prepare();
        ptx::barrier_sync(kDecodeSetUp, kDecodeThreads);
        finder.run();
        return;
    }
    ptx::barrier_sync(kDecodeSetUp, kDecodeThreads);
    if (params.box_rows == 0) copy_rows<kConfig>(shared, maps, params, loader, lane);
}

template <class Instance>
const void* decode_kernel() {
    static_assert(sizeof(DecodeShared<Instance::kConfig>) <= static_cast<size_t>(shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&decode<Instance>);
}

}  // namespace foveal::sm90
