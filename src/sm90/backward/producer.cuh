// The backward kernel's producer warps: steps 1 to 4 of its schedule (kernel.cuh).
#pragma once

#include "sm90/backward/params.hpp"
#include "sm90/backward/shared.cuh"
#include "sm90/ptx/bulk_copy.cuh"
#include "sm90/ptx/global_memory.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

// Takes the next task from the list and publishes it: not before it can be begun, for others may wait for its sums. One
// warp calls it.
template <BackwardConfig kConfig>
__device__ __forceinline__ void publish_task(BackwardShared<kConfig>& shared, const BackwardParams& params,
                                             RingPosition<kTaskSlots> at) {
    const int32_t lane = ptx::lane_id();
    int32_t task = 0;
    if (lane == 0) task = atomicAdd(params.workspace.next_task, 1);
    task = uniform(task);
    const bool exists = task < *params.workspace.task_count;
    shared.task_ring.wait_free(at);
    if (lane < kTaskWords) {
        // Of a task that does not exist every word is zero, the query tiles to be visited too.
        const auto* from = reinterpret_cast<const int32_t*>(params.workspace.tasks + task);
        reinterpret_cast<int32_t*>(&shared.tasks[at.slot])[lane] = exists ? from[lane] : 0;
    }
    ptx::mbarrier_arrive(shared.task_ring.full[at.slot][0]);  // every lane for what it has written
}

// The task in a slot, once it is there; it is read until released.
template <BackwardConfig kConfig>
__device__ __forceinline__ const BackwardTask& wait_task(BackwardShared<kConfig>& shared, RingPosition<kTaskSlots> at) {
    shared.task_ring.wait_full(at);
    return shared.tasks[at.slot];
}
// By every thread for itself: racecheck follows no warp.
template <BackwardConfig kConfig>
__device__ __forceinline__ void release_task(BackwardShared<kConfig>& shared, int32_t slot) {
    ptx::mbarrier_arrive(shared.task_ring.free[slot][0]);
}

__device__ __forceinline__ bool is_last(const BackwardTask& task) { return task.query_tiles.size() == 0; }

// Calls step(step, is_first) for each step of a task.
template <class Step>
__device__ __forceinline__ void for_each_step(const BackwardTask& task, int32_t heads, Step step) {
    BackwardStep at = BackwardStep::first(task.query_tiles, task.ascends != 0);
    for (bool is_first = true, more = true; more; is_first = false) {
        step(at, is_first);
        more = at.advance(task.query_tiles, task.ascends != 0, heads);
    }
}

// Loads kRows rows of kColumns columns from `column` on as a tile of panels (tile/panel.hpp). One thread calls it.
template <int32_t kRows, int32_t kColumns>
__device__ __forceinline__ void load_panels(uint16_t* tile, const CUtensorMap& map, uint64_t& barrier, int32_t column,
                                            int32_t row, int32_t head, int32_t batch) {
#pragma unroll
    for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel)
        ptx::tensor_load(tile + panel * kRows * kPanelColumns, map, barrier, column + panel * kPanelColumns, row, head,
                         batch);
}

// Zeroes the rows of a tile of panels that lie outside `kept`. One warp calls it.
template <int32_t kRows, int32_t kColumns>
__device__ __forceinline__ void zero_rows_outside(uint16_t* tile, Range kept) {
    for (int32_t panel = 0; panel < kColumns / kPanelColumns; ++panel) {
        auto* vectors = reinterpret_cast<uint4*>(tile + panel * kRows * kPanelColumns);
        for (int32_t i = ptx::lane_id(); i < kRows * kRowVectors; i += kWarpThreads)
            if (!kept.contains(i / kRowVectors)) vectors[i] = uint4{0, 0, 0, 0};
    }
}

// What a producer warp loads: a tile of rows of one head, and beside it `extra` bytes of fp32.
template <int32_t kRows, int32_t kColumns>
struct TileLoad {
    uint16_t* tile;
    const CUtensorMap& map;
    int32_t first, row;  // the sequence's first row in the map, and the tile's in the sequence
    int32_t head, batch;
    float* extra_to;
    const float* extra_from;
    int32_t column = 0;  // the tile's first

    static constexpr uint32_t kBytes = kRows * kColumns * 2;
    static constexpr uint32_t kExtraBytes = kRows * 4;

    __device__ __forceinline__ void issue(uint64_t& barrier) const {
        if (ptx::elect_sync()) {
            ptx::mbarrier_arrive_expect_tx(barrier, kBytes + (extra_to != nullptr ? kExtraBytes : 0));
            load_panels<kRows, kColumns>(tile, map, barrier, column, first + row, head, batch);
            if (extra_to != nullptr) ptx::bulk_load(extra_to, extra_from, kExtraBytes, barrier);
        }
        __syncwarp();
    }

    // The tile has rows outside `used`, of the sequence, which may be anything: P and dS are zero there, but 0 * NaN is
    // not. The copy engine fills with zeros past the tensor's mapped_rows, not past the sequence.
    __device__ __forceinline__ void issue_used(uint64_t& full, uint64_t& landed, RingPosition<1>& landing, Range used,
                                               int32_t mapped_rows) const {
        const bool has_strays = row < used.begin || (row + kRows > used.end && first + used.end < mapped_rows);
        issue(has_strays ? landed : full);
        if (!has_strays) return;
        ptx::mbarrier_wait(landed, landing.parity);
        landing.advance();
        zero_rows_outside<kRows, kColumns>(tile, {used.begin - row, used.end - row});
        ptx::fence_proxy_async();
        __syncwarp();
        if (ptx::elect_sync()) ptx::mbarrier_arrive(full);
        __syncwarp();
    }
};

// Where in the workspace a step's query tile lies.
__device__ __forceinline__ int64_t unit_of(const BackwardParams& params, const BackwardTask& task, BackwardStep step) {
    return params.unit(task.slot + step.tile, task.head_k * params.heads_per_kv + step.head);
}

// Tasks, K, Q and -lse.
template <BackwardConfig kConfig>
__device__ __forceinline__ void produce_keys_and_queries(BackwardShared<kConfig>& shared, const BackwardMaps& maps,
                                                         const BackwardParams& params) {
    constexpr BackwardTile kTile = kConfig.tile;
    RingPosition<kTaskSlots> tasks;
    RingPosition<kTile.key_buffers> keys;
    RingPosition<kTile.query_buffers> queries;
    RingPosition<1> landing;
    for (;; tasks.advance(), keys.advance()) {
        publish_task<kConfig>(shared, params, tasks);
        const BackwardTask& task = wait_task<kConfig>(shared, tasks);
        if (is_last(task)) return;
        shared.k_ring.wait_free(keys);
        TileLoad<kBackwardKeys, kTile.head_dim>{shared.k[keys.slot], maps.k,     task.k.first, task.key,
                                                task.head_k,         task.batch, nullptr,      nullptr}
            .issue_used(shared.k_ring.full[keys.slot][0], shared.landed[0], landing, task.seen, params.mapped_rows_k);
        for_each_step(task, params.heads_per_kv, [&](BackwardStep step, bool) {
            shared.q_ring.wait_free(queries);
            TileLoad<kBackwardQueries, kTile.head_dim>{
                shared.q[queries.slot],
                maps.q,
                task.q.first,
                step.tile * kBackwardQueries,
                task.head_k * params.heads_per_kv + step.head,
                task.batch,
                shared.neg_lse[queries.slot],
                params.workspace.neg_lse + unit_of(params, task, step) * kBackwardQueries}
                .issue_used(shared.q_ring.full[queries.slot][0], shared.landed[0], landing, task.seeing,
                            params.mapped_rows_q);
            queries.advance();
        });
        release_task<kConfig>(shared, tasks.slot);
    }
}

// V, dO and -delta. A task's first dO comes before its V, for which the task before must have ended.
template <BackwardConfig kConfig>
__device__ __forceinline__ void produce_values_and_douts(BackwardShared<kConfig>& shared, const BackwardMaps& maps,
                                                         const BackwardParams& params) {
    constexpr BackwardTile kTile = kConfig.tile;
    RingPosition<kTaskSlots> tasks;
    RingPosition<1> values, landing;
    RingPosition<kTile.dout_buffers> douts;
    for (;; tasks.advance()) {
        const BackwardTask& task = wait_task<kConfig>(shared, tasks);
        if (is_last(task)) return;
        for_each_step(task, params.heads_per_kv, [&](BackwardStep step, bool is_first) {
            shared.dout_ring.wait_free(douts);
            TileLoad<kBackwardQueries, kTile.head_dim>{
                shared.dout[douts.slot],
                maps.dout,
                task.q.first,
                step.tile * kBackwardQueries,
                task.head_k * params.heads_per_kv + step.head,
                task.batch,
                shared.neg_delta[douts.slot],
                params.workspace.neg_delta + unit_of(params, task, step) * kBackwardQueries}
                .issue_used(shared.dout_ring.full[douts.slot][0], shared.landed[1], landing, task.seeing,
                            params.mapped_rows_q);
            douts.advance();
            if (!is_first) return;
            shared.v_ring.wait_free(values);
            TileLoad<kBackwardKeys, kTile.head_dim>{shared.v,    maps.v,     task.k.first, task.key,
                                                    task.head_k, task.batch, nullptr,      nullptr}
                .issue_used(shared.v_ring.full[0][0], shared.landed[1], landing, task.seen, params.mapped_rows_k);
            values.advance();
        });
        release_task<kConfig>(shared, tasks.slot);
    }
}

// Adds a warpgroup's part of dQ, once it is staged, to the sums in the workspace, as soon as it is its turn. The first
// stores. One thread calls it.
template <BackwardConfig kConfig>
__device__ __forceinline__ void add_to_sums(BackwardShared<kConfig>& shared, const BackwardParams& params,
                                            int32_t warpgroup, RingPosition<1> staged, int64_t unit, int32_t rank) {
    constexpr int32_t kElements = kConfig.tile.dq_elements();
    const int64_t part = unit * kBackwardConsumers + warpgroup;
    int32_t* arrivals = params.workspace.arrivals + part;
    float* sums = params.workspace.dq_sums + part * kElements;
    while (ptx::load_acquire(arrivals) < rank) __nanosleep(0);
    ptx::fence_proxy_async_all();  // the copy engine adds to what others have brought
    shared.dq_ring[warpgroup].wait_full(staged);
    if (rank == 0)
        ptx::bulk_store(sums, shared.dq[warpgroup], kElements * 4);
    else
        ptx::bulk_add(sums, shared.dq[warpgroup], kElements * 4);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read();
    ptx::mbarrier_arrive(shared.dq_ring[warpgroup].free[0][0]);
    ptx::bulk_wait_group();  // after which this thread sees the sums, and releases them; who acquires them has the
                             // fence
    ptx::add_release(arrivals, 1);
}

// dQ of one consumer warpgroup. The first that it stages belongs to no step.
template <BackwardConfig kConfig>
__device__ __forceinline__ void write_dq(BackwardShared<kConfig>& shared, const BackwardParams& params,
                                         int32_t warpgroup) {
    RingPosition<kTaskSlots> tasks;
    RingPosition<1> staged;
    Ring<1>& ring = shared.dq_ring[warpgroup];
    for (bool is_first_task = true;; tasks.advance(), is_first_task = false) {
        const BackwardTask& task = wait_task<kConfig>(shared, tasks);
        if (is_last(task)) return;
        if (ptx::lane_id() == 0) {  // always the same lane: it alone knows what has been staged
            if (is_first_task) {
                ring.wait_full(staged);
                staged.advance();
                ptx::mbarrier_arrive(ring.free[0][0]);
            }
            for_each_step(task, params.heads_per_kv, [&](BackwardStep step, bool) {
                add_to_sums<kConfig>(shared, params, warpgroup, staged, unit_of(params, task, step),
                                     rank_of(task, step.tile));
                staged.advance();
            });
        }
        __syncwarp();
        release_task<kConfig>(shared, tasks.slot);
    }
}

template <BackwardConfig kConfig>
__device__ __forceinline__ void produce(BackwardShared<kConfig>& shared, const BackwardMaps& maps,
                                        const BackwardParams& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (warp == 0) produce_keys_and_queries<kConfig>(shared, maps, params);
    if (warp == 1) produce_values_and_douts<kConfig>(shared, maps, params);
    if (warp >= 2) write_dq<kConfig>(shared, params, warp - 2);
}

}  // namespace foveal::sm90
