// The forward kernel: one CTA an SM walks its tiles; a tile is 64 query rows of one head for each consumer warpgroup.
//
// Schedule (docs/forward.md has the same as a picture):
//   [producer, warp K]  1. for every tile, for every K block: wait until free; load.
//   [producer, warp V]  2. the same for V; rows of a block that belong to another sequence are zeroed (0 * NaN).
//   [producer, warp Q]  3. for every tile: wait for a free Q buffer; publish the tile; load Q.
//   [consumer]          4. wait for the K block and for the V block before it; take the turn on the tensor cores.
//   [consumer]          5. issue S = Q K^T of this block, then O += P V of the block before, in two groups; two
//                          wgmmas before the end pass the turn to the next warpgroup.
//   [consumer]          6. S done: release K; mask; S becomes exponents.
//   [consumer]          7. first group of P V done: its registers take the first half of the new P.
//   [consumer]          8. P V done: release V; the other half of P; sums; rescale in the rare case.
//   [consumer]          9. at a tile's end, 5 issues the next tile's first Q K^T together with this tile's last P V,
//   and
//                          after 8 the finished O goes through shared memory to global, so the tensor cores never idle.
#pragma once

#include "epilogue.cuh"
#include "forward_kernel.hpp"
#include "forward_params.hpp"
#include "gemm.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tensor_copy.cuh"
#include "ptx/warp.cuh"
#include "softmax.cuh"
#include "tiles.hpp"
#include "work.cuh"

namespace foveal::sm90 {

inline constexpr int32_t kWorkSlots = 4;  // published tiles; a slot is reused when its Q buffer was freed twice

template <ForwardConfig kConfig>
struct Shared {
    static constexpr ForwardTile kTile = kConfig.tile;
    alignas(1024) uint16_t q[kQueryBuffers][kTile.consumers][kWarpgroupRows * kTile.head_dim];
    uint16_t k[kTile.stages][kTile.keys * kTile.head_dim];
    uint16_t v[kTile.stages][kTile.keys * kTile.head_dim];
    uint16_t out[kTile.consumers][kWarpgroupRows * kTile.head_dim];
    uint64_t q_full[kQueryBuffers], q_free[kQueryBuffers];
    uint64_t k_full[kTile.stages], k_free[kTile.stages];
    uint64_t v_full[kTile.stages], v_free[kTile.stages];
    uint64_t v_landed;  // a V block that still has rows to be zeroed
    Work work[kWorkSlots];
};

// A position in a ring of buffers. A buffer is full in the phase `parity`, and free before it in the other.
template <int32_t kSize>
struct RingPosition {
    int32_t slot = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == kSize) {
            slot = 0;
            parity ^= 1;
        }
    }
};

struct ForwardMaps {
    const CUtensorMap &q, &k, &v, &out;
};

// ---------------------------------------------------------------------------------------------------------------------
// Producer warps

template <ForwardConfig kConfig>
__device__ __forceinline__ void load_block(uint16_t* tile, const CUtensorMap& map, uint64_t& barrier, int32_t row,
                                           const Work& work) {
    constexpr ForwardTile kTile = kConfig.tile;
    if (!ptx::elect_sync()) return;
    ptx::mbarrier_arrive_expect_tx(barrier, kTile.block_bytes());
#pragma unroll
    for (int32_t panel = 0; panel < kTile.head_dim / kPanelColumns; ++panel)
        ptx::tensor_load(tile + panel * kTile.keys * kPanelColumns, map, barrier, panel * kPanelColumns, row,
                         work.head_k, work.batch);
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_k(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kTile.rows(), kTile.keys> cursor(params);
    RingPosition<kTile.stages> ring;
    for (Work work = cursor.next(); work.valid; work = cursor.next())
        for (int32_t block = work.blocks.visit.begin; block < work.blocks.visit.end; ++block, ring.advance()) {
            ptx::mbarrier_wait(shared.k_free[ring.slot], ring.parity ^ 1);
            load_block<kConfig>(shared.k[ring.slot], maps.k, shared.k_full[ring.slot],
                                work.first_k + block * kTile.keys, work);
            __syncwarp();
        }
}

// Rows [first_row, keys) of a V block in shared memory, all panels.
template <ForwardConfig kConfig>
__device__ __forceinline__ void zero_rows(uint16_t* tile, int32_t first_row) {
    constexpr ForwardTile kTile = kConfig.tile;
    constexpr int32_t kRowVectors = kPanelColumns * 2 / sizeof(uint4);
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    for (int32_t panel = 0; panel < kTile.head_dim / kPanelColumns; ++panel) {
        auto* rows = reinterpret_cast<uint4*>(tile + panel * kTile.keys * kPanelColumns);
        for (int32_t i = first_row * kRowVectors + lane; i < kTile.keys * kRowVectors; i += 32)
            rows[i] = uint4{0, 0, 0, 0};
    }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_v(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kTile.rows(), kTile.keys> cursor(params);
    RingPosition<kTile.stages> ring;
    RingPosition<1> landing;
    for (Work work = cursor.next(); work.valid; work = cursor.next())
        for (int32_t block = work.blocks.visit.begin; block < work.blocks.visit.end; ++block, ring.advance()) {
            const int32_t row = block * kTile.keys;
            // The copy engine fills with zeros past the tensor, but not past the sequence.
            const bool has_stray_rows =
                row + kTile.keys > work.band.len_k && work.first_k + work.band.len_k < params.mapped_rows_k;
            ptx::mbarrier_wait(shared.v_free[ring.slot], ring.parity ^ 1);
            uint64_t& landed = has_stray_rows ? shared.v_landed : shared.v_full[ring.slot];
            load_block<kConfig>(shared.v[ring.slot], maps.v, landed, work.first_k + row, work);
            __syncwarp();
            if (!has_stray_rows) continue;
            ptx::mbarrier_wait(shared.v_landed, landing.parity);
            landing.advance();
            zero_rows<kConfig>(shared.v[ring.slot], max_i32(work.band.len_k - row, 0));
            ptx::fence_proxy_async();
            __syncwarp();
            if (ptx::elect_sync()) ptx::mbarrier_arrive(shared.v_full[ring.slot]);
            __syncwarp();
        }
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce_q(Shared<kConfig>& shared, const ForwardMaps& maps,
                                          const ForwardParams& params) {
    constexpr ForwardTile kTile = kConfig.tile;
    WorkCursor<kTile.rows(), kTile.keys> cursor(params);
    RingPosition<kQueryBuffers> ring;
    RingPosition<kWorkSlots> slots;
    for (bool more = true; more; ring.advance(), slots.advance()) {
        const Work work = cursor.next();
        more = work.valid;
        ptx::mbarrier_wait(shared.q_free[ring.slot], ring.parity ^ 1);
        if (ptx::elect_sync()) {
            shared.work[slots.slot] = work;
            uint64_t& full = shared.q_full[ring.slot];
            if (!work.valid) {
                ptx::mbarrier_arrive(full);
            } else {
                ptx::mbarrier_arrive_expect_tx(full, kTile.consumers * kTile.rows_bytes());
                for (int32_t w = 0; w < kTile.consumers; ++w)
                    for (int32_t panel = 0; panel < kTile.head_dim / kPanelColumns; ++panel)
                        ptx::tensor_load(shared.q[ring.slot][w] + panel * kWarpgroupRows * kPanelColumns, maps.q, full,
                                         panel * kPanelColumns, work.first_q + work.row + w * kWarpgroupRows,
                                         work.head_q, work.batch);
            }
        }
        __syncwarp();
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Consumer warpgroups

template <ForwardConfig kConfig>
class Consumer {
    static constexpr ForwardTile kTile = kConfig.tile;
    using Products = Gemm<kConfig>;
    static constexpr int32_t kChunks = Products::kChunks;
    static constexpr int32_t kEarlyChunks = 2;  // wgmmas before the end of P V at which the turn is passed
    static constexpr int32_t kTurnThreads = 2 * kWarpgroupThreads;
    static constexpr int32_t kFirstTurnBarrier = 1;  // 0 is __syncthreads'

   public:
    __device__ __forceinline__ Consumer(Shared<kConfig>& shared, const ForwardMaps& maps, const ForwardParams& params,
                                        int32_t warpgroup)
        : shared_(shared),
          maps_(maps),
          params_(params),
          warpgroup_(warpgroup),
          lane_(static_cast<int32_t>(threadIdx.x) % 32),
          warp_(uniform(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads / 32)),
          q_descriptor_(descriptor_low(shared.q[0][warpgroup], 0)),
          k_descriptor_(descriptor_low(shared.k[0], 0)),
          v_descriptor_(descriptor_low(shared.v[0], Products::kKeyPanelBytes)) {}

    __device__ __forceinline__ void run() {
        BlockRange blocks;
        if (!next_tile(blocks)) return;
        if (warpgroup_ == kTile.consumers - 1) pass_turn();  // warpgroup 0 begins
        first_scores(blocks);
        for (;;) {
            bool accumulate = false;
            for (int32_t block = blocks.visit.begin + 1; block < blocks.visit.end; ++block, accumulate = true)
                step(blocks, block, accumulate);
            // Every thread for itself: with Q go the reads of the tile's Work, which are ordinary ones of each thread.
            ptx::mbarrier_arrive(shared_.q_free[queries_.slot]);
            await_staging();
            const int32_t finished = work_slots_.slot;
            queries_.advance();
            work_slots_.advance();
            if (!next_tile(blocks)) {
                last_output(finished, accumulate);
                break;
            }
            boundary(blocks, finished, accumulate);
        }
        if (warpgroup_ == 0) take_turn();  // the one that the last warpgroup passed on
        ptx::bulk_wait_group();
    }

   private:
    // 4-6: both products issued, the scores there; the output is still under way.
    __device__ __forceinline__ void scores_beside_output(bool accumulate) {
        const int32_t k_slot = keys_.slot, v_slot = values_.slot;
        ptx::mbarrier_wait(shared_.k_full[k_slot], keys_.parity);
        ptx::mbarrier_wait(shared_.v_full[v_slot], values_.parity);
        take_turn();
        issue_scores(k_slot);
        issue_output(v_slot, accumulate);
        keys_.advance();
        values_.advance();
        ptx::wgmma_wait_group<2>();
        ptx::pin(s_);
        release(shared_.k_free[k_slot]);
    }

    // One block inside a tile.
    __device__ __forceinline__ void step(const BlockRange& blocks, int32_t block, bool accumulate) {
        const int32_t v_slot = values_.slot;
        scores_beside_output(accumulate);
        if (!blocks.unmasked.contains(block)) mask(block);
        softmax_.shift(s_, params_.scale_log2);
        const auto before = softmax_.sums();
        exponentials_beside_output(v_slot, block + 1 < blocks.visit.end);
        if (__any_sync(~0u, softmax_.add(p_))) {
            softmax_.rescale(s_, p_, o_, before);
            if (params_.rescales != nullptr && lane_ == 0) atomicAdd(params_.rescales, 1ull);
        }
    }

    // 9: the first block of a tile beside the last output of the one in slot `finished`.
    __device__ __forceinline__ void boundary(const BlockRange& blocks, int32_t finished, bool accumulate) {
        const int32_t v_slot = values_.slot;
        scores_beside_output(accumulate);
        const RowScale finish = finish_rows(finished);
        start_rows(blocks);
        exponentials_beside_output(v_slot, blocks.visit.size() > 1);
        softmax_.add(p_);
        store(finish, finished);
    }

    __device__ __forceinline__ void first_scores(const BlockRange& blocks) {
        const int32_t k_slot = keys_.slot;
        ptx::mbarrier_wait(shared_.k_full[k_slot], keys_.parity);
        take_turn();
        issue_scores(k_slot);
        pass_turn();
        keys_.advance();
        ptx::wgmma_wait_group<0>();
        ptx::pin(s_);
        release(shared_.k_free[k_slot]);
        start_rows(blocks);
        softmax_.template exponentials<0, kChunks>(s_, p_);
        softmax_.add(p_);
    }

    __device__ __forceinline__ void last_output(int32_t finished, bool accumulate) {
        const int32_t v_slot = values_.slot;
        ptx::mbarrier_wait(shared_.v_full[v_slot], values_.parity);
        take_turn();
        issue_output(v_slot, accumulate);
        const RowScale finish = finish_rows(finished);
        ptx::wgmma_wait_group<0>();
        ptx::pin(o_);
        store(finish, finished);
    }

    // The tile's band and row are read where they are needed, which is rare, and not kept in registers.
    __device__ __forceinline__ void mask(int32_t block) {
        const Work& work = shared_.work[work_slots_.slot];
        const int32_t row = work.row + warpgroup_ * kWarpgroupRows + warp_ * kWarpRows + lane_ / 4;
        Band band = work.band;
        band.chunk = 0;  // refused: no kernel has registers to spare for what is always 0
        softmax_.mask(s_, band, row, block * kTile.keys, lane_);
    }

    // Masks, references and exponents of a tile's first block.
    __device__ __forceinline__ void start_rows(const BlockRange& blocks) {
        const int32_t block = blocks.visit.begin;
        if (!blocks.unmasked.contains(block)) mask(block);
        softmax_.start(s_, params_.scale_log2);
        softmax_.shift(s_, params_.scale_log2);
    }

    // 7, 8: the new P takes the registers of the old one as the output product leaves them.
    __device__ __forceinline__ void exponentials_beside_output(int32_t v_slot, bool more_blocks) {
        ptx::pin(s_);
        ptx::wgmma_wait_group<1>();
        softmax_.template exponentials<0, kTile.first_chunks>(s_, p_);
#pragma unroll
        for (int32_t c = 0; c < kTile.first_chunks; ++c) ptx::pin(p_[c]);
        // Not needed before the next step. But without a branch here ptxas (13.0) moves the exponentials above behind
        // the wait below: 1.001 instead of 0.931 of the best peer's time at b1 s16384 (H200, 2026-11-23).
        if (more_blocks) ptx::mbarrier_wait(shared_.k_full[keys_.slot], keys_.parity);
        ptx::wgmma_wait_group<0>();
        ptx::pin(o_);
        release(shared_.v_free[v_slot]);
        softmax_.template exponentials<kTile.first_chunks, kChunks>(s_, p_);
    }

    __device__ __forceinline__ void issue_scores(int32_t k_slot) {
        constexpr uint32_t kBuffer = kTile.consumers * kTile.rows_bytes() / kDescriptorUnit;
        constexpr uint32_t kStage = kTile.block_bytes() / kDescriptorUnit;
        Products::scores(s_, q_descriptor_ + static_cast<uint32_t>(queries_.slot) * kBuffer,
                         k_descriptor_ + static_cast<uint32_t>(k_slot) * kStage);
    }

    __device__ __forceinline__ void issue_output(int32_t v_slot, bool accumulate) {
        const uint32_t v = v_descriptor_ + static_cast<uint32_t>(v_slot) * (kTile.block_bytes() / kDescriptorUnit);
        ptx::wgmma_fence();
        Products::template output<0, kTile.first_chunks>(o_, p_, v, accumulate);
        ptx::wgmma_commit_group();
        Products::template output<kTile.first_chunks, kChunks - kEarlyChunks>(o_, p_, v, true);
        pass_turn();
        Products::template output<kChunks - kEarlyChunks, kChunks>(o_, p_, v, true);
        ptx::wgmma_commit_group();
    }

    // The tensor cores are taken in turn, so that one warpgroup's softmax runs under the others' products.
    __device__ __forceinline__ void take_turn() { ptx::barrier_sync(kFirstTurnBarrier + warpgroup_, kTurnThreads); }
    __device__ __forceinline__ void pass_turn() {
        ptx::barrier_arrive(kFirstTurnBarrier + (warpgroup_ + 1 == kTile.consumers ? 0 : warpgroup_ + 1), kTurnThreads);
    }

    __device__ __forceinline__ void release(uint64_t& free) {
        if (lane_ == 0) ptx::mbarrier_arrive(free);
    }

    // Waits for the next tile's Q. false: there is none.
    __device__ __forceinline__ bool next_tile(BlockRange& blocks) {
        ptx::mbarrier_wait(shared_.q_full[queries_.slot], queries_.parity);
        const Work& work = shared_.work[work_slots_.slot];
        blocks.visit = {uniform(work.blocks.visit.begin), uniform(work.blocks.visit.end)};
        blocks.unmasked = {uniform(work.blocks.unmasked.begin), uniform(work.blocks.unmasked.end)};
        return uniform(static_cast<int32_t>(work.valid)) != 0;
    }

    // Factors that turn O into the output; writes the log-sum-exp.
    __device__ __forceinline__ RowScale finish_rows(int32_t slot) {
        const RowScale scale{{softmax_.normaliser(0), softmax_.normaliser(1)}};
        if constexpr (kConfig.lse) {
            const float lse[2] = {softmax_.log_sum_exp(0), softmax_.log_sum_exp(1)};
            store_lse(params_, shared_.work[slot], warpgroup_ * kWarpgroupRows + warp_ * kWarpRows, lane_, lse);
        }
        return scale;
    }

    // This warp's staging rows may be overwritten.
    __device__ __forceinline__ void await_staging() {
        if (ptx::elect_sync()) ptx::bulk_wait_group_read();
        __syncwarp();
    }

    __device__ __forceinline__ void store(RowScale scale, int32_t slot) {
        uint16_t* staging = shared_.out[warpgroup_];
        stage_rows<kConfig.dtype>(staging, warp_, lane_, o_, scale);
        store_rows<kTile.head_dim>(staging, warp_, lane_, maps_.out, params_, shared_.work[slot],
                                   warpgroup_ * kWarpgroupRows + warp_ * kWarpRows);
    }

    Shared<kConfig>& shared_;
    const ForwardMaps& maps_;
    const ForwardParams& params_;
    const int32_t warpgroup_, lane_, warp_;
    const uint32_t q_descriptor_, k_descriptor_, v_descriptor_;
    RingPosition<kTile.stages> keys_, values_;
    RingPosition<kQueryBuffers> queries_;
    RingPosition<kWorkSlots> work_slots_;
    Softmax<kConfig.dtype, kTile.keys, kConfig.lse> softmax_;
    float s_[Products::kScores];
    float o_[Products::kOut];
    uint32_t p_[kChunks][4];
};

// ---------------------------------------------------------------------------------------------------------------------

template <ForwardConfig kConfig>
__device__ __forceinline__ void set_up(Shared<kConfig>& shared) {
    constexpr ForwardTile kTile = kConfig.tile;
    constexpr uint32_t kConsumerWarps = kTile.consumers * kWarpgroupThreads / 32;  // lane 0 of each releases K and V
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < kQueryBuffers; ++i) {
            ptx::mbarrier_init(shared.q_full[i], 1);
            ptx::mbarrier_init(shared.q_free[i], kTile.consumers * kWarpgroupThreads);
        }
        for (int32_t i = 0; i < kTile.stages; ++i) {
            ptx::mbarrier_init(shared.k_full[i], 1);
            ptx::mbarrier_init(shared.k_free[i], kConsumerWarps);
            ptx::mbarrier_init(shared.v_full[i], 1);
            ptx::mbarrier_init(shared.v_free[i], kConsumerWarps);
        }
        ptx::mbarrier_init(shared.v_landed, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
}

template <ForwardConfig kConfig>
__device__ __forceinline__ void produce(Shared<kConfig>& shared, const ForwardMaps& maps, const ForwardParams& params) {
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / 32);
    if (warp == 0) produce_k<kConfig>(shared, maps, params);
    if (warp == 1) produce_v<kConfig>(shared, maps, params);
    if (warp == 2) produce_q<kConfig>(shared, maps, params);
}

template <class Instance>
__global__ void __launch_bounds__(Instance::kConfig.tile.threads(), 1)
    forward(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
            const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap out_map,
            const __grid_constant__ ForwardParams params) {
    constexpr ForwardConfig kConfig = Instance::kConfig;
    extern __shared__ unsigned char shared_memory[];
    auto& shared = *reinterpret_cast<Shared<kConfig>*>(shared_memory);
    const ForwardMaps maps{q_map, k_map, v_map, out_map};
    const int32_t warpgroup = uniform(static_cast<int32_t>(threadIdx.x) / kWarpgroupThreads);
    set_up(shared);
    if (warpgroup == 0) {
        ptx::setmaxnreg_dec<kConfig.tile.producer_registers>();
        produce<kConfig>(shared, maps, params);
    } else {
        ptx::setmaxnreg_inc<kConfig.tile.consumer_registers>();
        Consumer<kConfig>(shared, maps, params, warpgroup - 1).run();
    }
}

template <class Instance>
const void* forward_kernel() {
    static_assert(sizeof(Shared<Instance::kConfig>) <= static_cast<size_t>(shared_bytes(Instance::kConfig.tile)));
    return reinterpret_cast<const void*>(&forward<Instance>);
}

}  // namespace foveal::sm90
