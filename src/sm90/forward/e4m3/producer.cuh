// The producer warps of the forward kernel over e4m3: steps 0 to 2 of its schedule (kernel.cuh).
#pragma once

#include "sm90/forward/cursor.cuh"
#include "sm90/forward/e4m3/params.hpp"
#include "sm90/forward/e4m3/shared.cuh"
#include "sm90/ptx/tensor_copy.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/panel.cuh"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// Step 0.
template <E4m3Config kConfig>
__device__ __forceinline__ void produce_work(E4m3Shared<kConfig>& shared, const E4m3Params& all) {
    constexpr WorkTraits kTraits = work_traits_of(kConfig);
    const ForwardParams& params = all.forward;
    await_set_up<kConfig>();
    WorkCursor<kTraits> cursor(params, shared.ranked_tiles);
    RingPosition<kWorkSlots> ring;
    for (bool more = true; more; ring.advance()) {
        const Work work = cursor.next();
        more = work.computed != 0;
        const int32_t g = ptx::lane_id();  // sees to the tile's g-th 16 rows
        const bool has_rows = more && g < kConfig.walk().segments();
        const Segment rows = has_rows ? segment_of<kTraits>(params, work, g) : Segment{};
        TileFactors factors{};
        if (more)
            factors = {
                params.scale_log2 * (all.q.of(work.sequence, work.head_k) * all.k.of(work.sequence, work.head_k)),
                all.v.of(work.sequence, work.head_k)};
        shared.work_ring.wait_free(ring);
        if (ptx::elect_sync()) {
            shared.work[ring.slot] = work;
            shared.factors[ring.slot] = factors;
        }
        if (has_rows) shared.segments[ring.slot][g] = rows;
        ptx::mbarrier_arrive(shared.work_ring.full[ring.slot][0]);
        __syncwarp();
    }
}

// The tile's w-th 64 rows of Q: in one box or, if the tile is packed, a segment at a time. One thread calls it.
__device__ __forceinline__ void load_e4m3_queries(uint8_t* tile, const ForwardMaps& maps, uint64_t& barrier,
                                                  const Work& work, int32_t w) {
    const bool packed = work.heads_log2 > 0;
    const CUtensorMap& map = packed ? maps.packed_q : maps.q;
    ptx::mbarrier_arrive_expect_tx(barrier, kWarpgroupRows * kE4m3Channels);
#pragma unroll 1
    for (int32_t i = 0; i < (packed ? kWarpgroupWarps : 1); ++i) {
        const int32_t g = w * kWarpgroupWarps + i;
        ptx::tensor_load(tile + i * kWarpRows * kE4m3Channels, map, barrier, 0, work.first_q + work.query_of(g),
                         work.head_of(g), work.batch);
    }
}

// Step 1: of every tile Q, then K and V block by block. V runs ahead of K by what lies landed, so one warp does.
template <E4m3Config kConfig>
__device__ __forceinline__ void load_tiles(E4m3Shared<kConfig>& shared, const ForwardMaps& maps,
                                           const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.walk();
    constexpr WorkTraits kTraits = work_traits_of(kConfig);
    RingPosition<kWorkSlots> works;
    RingPosition<kTile.query_buffers> queries;
    RingPosition<kTile.stages> keys;
    RingPosition<kE4m3Landings> values;
    for (;; works.advance(), queries.advance()) {
        const Work work = next_work(shared, works);
        for (int32_t w = 0; w < kTile.query_tiles(); ++w) {
            shared.q_ring.wait_free(queries, w);
            if (ptx::elect_sync()) {
                uint64_t& full = shared.q_ring.full[queries.slot][w];
                if ((work.computed >> w & 1) != 0)
                    load_e4m3_queries(shared.q[queries.slot][w], maps, full, work, w);
                else
                    ptx::mbarrier_arrive(full);
            }
            __syncwarp();
        }
        if (work.computed == 0) return;
        const Range visit = work.blocks.visit;
        for (int32_t step = visit.begin; step < visit.end; ++step, keys.advance(), values.advance()) {
            const int32_t row = work.first_k + block_of_step<kTraits>(params, visit, step) * kE4m3Keys;
            const auto load = [&](uint8_t* to, const CUtensorMap& map, uint64_t& full) {
                if (ptx::elect_sync()) {
                    ptx::mbarrier_arrive_expect_tx(full, kE4m3Keys * kE4m3Channels);
                    ptx::tensor_load(to, map, full, 0, row, work.head_k, work.batch);
                }
                __syncwarp();
            };
            shared.k_ring.wait_free(keys);
            load(shared.k[keys.slot], maps.k, shared.k_ring.full[keys.slot][0]);
            shared.v_ring.wait_free(values);
            load(shared.v[values.slot], maps.v, shared.v_ring.full[values.slot][0]);
        }
    }
}

#ifndef E4_ATONCE
#define E4_ATONCE 2
#endif
// Step 2: transposes 16 channels from `vector` on of a block, four times 32 keys. kMasked: keys outside `seen` become
// zeros, since V may be anything there, and 0 * NaN is NaN.
template <bool kMasked>
__device__ __forceinline__ void transpose_channels(uint32_t v, uint32_t transposed, int32_t vector, int32_t lane,
                                                   Range seen) {
    constexpr int32_t kGroups = kE4m3Keys / 32, kAtOnce = kMasked ? 1 : E4_ATONCE;  // more need more registers than there are
    const int32_t matrix = lane / 8;                                        // whose row this lane addresses
    const int32_t channel = vector * 16 + Transposition::channel(lane % 8, matrix % 2);
#pragma unroll 1
    for (int32_t first = 0; first < kGroups; first += kAtOnce) {
        uint32_t pairs[kAtOnce][4];
#pragma unroll
        for (int32_t i = 0; i < kAtOnce; ++i)
            ptx::ldmatrix_x4_trans(v + swizzled((first + i) * 32 + lane, vector), pairs[i]);
#pragma unroll
        for (int32_t i = 0; i < kAtOnce; ++i) {
            const int32_t group = first + i;
            if constexpr (kMasked) {
#pragma unroll
                for (int32_t eight = 0; eight < 4; ++eight) {
                    const int32_t key = group * 32 + eight * 8 + lane % 4 * 2;
                    pairs[i][eight] &=
                        (seen.contains(key) ? 0xFFFFu : 0u) | (seen.contains(key + 1) ? 0xFFFF0000u : 0u);
                }
            }
            uint32_t rows[4];
#pragma unroll
            for (int32_t j = 0; j < 4; ++j)
                rows[j] =
                    __byte_perm(pairs[i][j / 2 * 2], pairs[i][j / 2 * 2 + 1], Transposition::selector(lane, j % 2));
            ptx::stmatrix_x4(transposed + swizzled(channel, group * 2 + matrix / 2), rows[0], rows[1], rows[2],
                             rows[3]);
        }
    }
}

template <E4m3Config kConfig>
__device__ __forceinline__ void transpose_tiles(E4m3Shared<kConfig>& shared, const ForwardParams& params,
                                                int32_t transposer) {
    constexpr ForwardTile kTile = kConfig.walk();
    constexpr WorkTraits kTraits = work_traits_of(kConfig);
    constexpr int32_t kVectors = kConfig.head_dim / kVectorBytes / kTransposers;
    RingPosition<kWorkSlots> works;
    RingPosition<kTile.stages> to;
    RingPosition<kE4m3Landings> from;
    const int32_t lane = ptx::lane_id();
    for (;; works.advance()) {
        const Work work = next_work(shared, works);
        if (work.computed == 0) return;
        const Range visit = work.blocks.visit;
        for (int32_t step = visit.begin; step < visit.end; ++step, to.advance(), from.advance()) {
            const int32_t row = block_of_step<kTraits>(params, visit, step) * kE4m3Keys;
            const Range seen{work.seen.begin - row, work.seen.end - row};
            shared.v_ring.wait_full(from);
            shared.transposed_ring.wait_free(to);
            const uint32_t v = ptx::shared_address(shared.v[from.slot]),
                           transposed = ptx::shared_address(shared.transposed_v[to.slot]);
            if (seen.begin > 0 || seen.end < kE4m3Keys) {
#pragma unroll 1
                for (int32_t i = 0; i < kVectors; ++i)
                    transpose_channels<true>(v, transposed, transposer * kVectors + i, lane, seen);
            } else {
#pragma unroll 1
                for (int32_t i = 0; i < kVectors; ++i)
                    transpose_channels<false>(v, transposed, transposer * kVectors + i, lane, seen);
            }
            ptx::fence_proxy_async();
            __syncwarp();
            if (ptx::elect_sync()) {
                ptx::mbarrier_arrive(shared.transposed_ring.full[to.slot][0]);
                ptx::mbarrier_arrive(shared.v_ring.free[from.slot][0]);
            }
            __syncwarp();
        }
    }
}

}  // namespace foveal::sm90
