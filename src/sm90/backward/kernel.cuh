// The backward kernel: one CTA an SM takes tasks from a list (schedule.hpp) that the kernel before it has written
// (prepare.cu). A task is 128 keys, K and V of which stay in shared memory, and their dK and dV in registers, while Q
// and dO of the queries that see them pass by, 64 rows a step. dQ is summed in the workspace, in a fixed order;
// the kernel after it (finish.cu) rounds it.
//
// Schedule (docs/backward-sm90.md has more of the reasons):
//   [producer, warp 0]  1. behind the last loads of a task: take the next one, publish it.
//   [producer, warp 0]  2. for every task: K; for every step: Q and -lse. Rows that are not the sequence's are zeroed
//                          (0 * NaN).
//   [producer, warp 1]  3. for every step: dO and -delta; behind a task's first, V. Zeroed likewise.
//   [producer, 2 and 3] 4. for every step, each for one consumer warpgroup: wait for the staged dQ and, with it, for
//   its
//                          turn; let the copy engine add it to the sums; pass the turn on.
//   [consumer]          5. P of step i is in registers. Wait until the other warpgroup has stored its dS of step i - 1.
//   [consumer]          6. issue dQ of step i - 1, then dV of step i. dQ done: tell the other that dS has been read;
//                          stage dQ as soon as its buffer is free.
//   [consumer]          7. at a task's first step: release the K of the task before, wait for V.
//   [consumer]          8. dP, which starts at -delta (dropout: at 0, and the kept of it are added to -delta);
//                          dS = P * dP, rounded.
//   [consumer]          9. wait until the other has read the dS of step i - 1; store that of step i; one fence for it
//                          and for the staged dQ; tell the other, and the producer.
//   [consumer]         10. release dO (and at a task's end V); wait for the next Q; scores of step i + 1, which start
//   at
//                          -lse / scale, or at -inf under the mask; behind them dK of step i.
//                          Under dropout, behind both: which of the scores are kept.
//   [consumer]         11. scores done: their exponentials, under dK, are P of step i + 1. dK done: release Q.
//   [consumer]         12. if the task has ended: its dK and dV are rounded and stored; the next one is under way.
#pragma once

#include "sm90/backward/await.cuh"
#include "sm90/backward/consumer.cuh"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/params.hpp"
#include "sm90/backward/producer.cuh"
#include "sm90/backward/shared.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// By one thread.
template <BackwardConfig kConfig>
__device__ __forceinline__ void initialise_barriers(BackwardShared<kConfig>& shared) {
    constexpr BackwardTile kTile = kConfig.tile;
    // wgmma reads tiles for a warp: one lane of each releases them.
    constexpr uint32_t kConsumerWarps = kBackwardConsumers * kWarpgroupWarps;
    constexpr uint32_t kTaskReaders = 4 * kWarpThreads + kBackwardConsumers * kWarpgroupThreads;
    for (int32_t i = 0; i < kTaskSlots; ++i) shared.task_ring.initialise(i, kWarpThreads, kTaskReaders);
    for (int32_t i = 0; i < kTile.key_buffers; ++i) shared.k_ring.initialise(i, 1, kConsumerWarps);
    shared.v_ring.initialise(0, 1, kConsumerWarps);
    for (int32_t i = 0; i < kTile.query_buffers; ++i) shared.q_ring.initialise(i, 1, kConsumerWarps);
    for (int32_t i = 0; i < kTile.dout_buffers; ++i) shared.dout_ring.initialise(i, 1, kConsumerWarps);
    for (int32_t w = 0; w < kBackwardConsumers; ++w) {
        shared.dq_ring[w].initialise(0, kWarpgroupWarps, 1);
        ptx::mbarrier_init(shared.landed[w], 1);
    }
    ptx::fence_mbarrier_init();
}

template <BackwardConfig kConfig>
__device__ __forceinline__ void run_backward(BackwardShared<kConfig>& shared, const BackwardMaps& maps,
                                             const BackwardParams& params, const Dropout& dropout) {
    if (threadIdx.x == 0) initialise_barriers<kConfig>(shared);
    __syncthreads();
    await_kernel_before();
    if constexpr (kConfig.drops_weights()) {
        if (threadIdx.x == 0) shared.dropout_key = dropout_key(dropout.state);
        __syncthreads();
    }
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        produce<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        BackwardConsumer<kConfig>(shared, params, dropout, warpgroup - 1).run();
    }
}

template <class Instance>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
             const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap dout_map,
             const __grid_constant__ BackwardParams params, const __grid_constant__ Dropout dropout) {
    extern __shared__ unsigned char shared_memory[];
    run_backward<Instance::kConfig>(*reinterpret_cast<BackwardShared<Instance::kConfig>*>(shared_memory),
                                    {q_map, k_map, v_map, dout_map}, params, dropout);
}

template <class Instance>
const void* backward_kernel() {
    static_assert(sizeof(BackwardShared<Instance::kConfig>) <=
                  static_cast<size_t>(shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&backward<Instance>);
}

}  // namespace foveal::sm90
