// The warpgroup that computes: steps 4 to 9 of the decode kernel's schedule (kernel.cuh).
#pragma once

#include <cstdint>

#include "sm90/decode/column_scores.cuh"
#include "sm90/decode/gather.cuh"
#include "sm90/decode/nodes.cuh"
#include "sm90/decode/output.cuh"
#include "sm90/decode/params.hpp"
#include "sm90/decode/shared.cuh"
#include "sm90/decode/split.hpp"
#include "sm90/decode/strip.cuh"
#include "sm90/decode/tiles.hpp"
#include "sm90/ptx/global_memory.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/pipeline.cuh"
#include "sm90/tile/uniform.cuh"

namespace foveal::sm90 {

template <DecodeConfig kConfig>
class DecodeConsumer {
    static constexpr DecodeTile kTile = kConfig.tile;
    static constexpr int32_t kOctets = kTile.octets(), kKsteps = kTile.ksteps();
    static constexpr int32_t kColumns = kTile.warp_columns(), kValues = kTile.values();
    static constexpr int32_t kSlots = kTile.slots_of_block();

   public:
    __device__ __forceinline__ DecodeConsumer(DecodeShared<kConfig>& shared, const DecodeParams& params)
        : shared_(shared),
          params_(params),
          thread_(static_cast<int32_t>(threadIdx.x) % kWarpgroupThreads),
          warp_(uniform(thread_ / kWarpThreads)),
          lane_(thread_ % kWarpThreads),
          strip_(warp_, lane_) {}

    __device__ __forceinline__ void run() {
        for (int32_t taken = 0;; ++taken) {
            shared_.work_ring.wait_full(works_);
            const DecodeWork work = shared_.works[works_.slot];
            if (work.number < 0) return;
            ptx::mbarrier_wait(shared_.queries_full[works_.slot], works_.parity);
            const PieceColumns columns(params_, work, kTile.columns);
            if constexpr (kConfig.computes()) {
                strip_.take_queries(shared_.queries[works_.slot]);
                if constexpr (kTile.dequantises())
                    strip_.take_descales(descale_of(params_.k_descale, work), descale_of(params_.v_descale, work));
                compute(work, columns);
            } else {
                pass_over(work);
            }
            ptx::mbarrier_arrive(shared_.work_ring.free[works_.slot][0]);
            works_.advance();
            if (taken == 0) first_is_partial_ = !work.is_whole();
            if constexpr (kConfig.computes()) finish(work, columns, taken == 0);
        }
    }

   private:
    // ---- a piece ----------------------------------------------------------------------------------------------------

    // Its nodes: the last one stays in node_ if the piece is the whole sequence, else all go to the workspace.
    __device__ __forceinline__ void compute(const DecodeWork& work, const PieceColumns& columns) {
        const ColumnScores<kConfig> scores(params_, work, columns, shared_.column_keys[warp_], lane_);
        const Leaves leaves = leaves_of(work.seen.counted_blocks(), kTile.levels);
        const int32_t begin = work.piece.begin >> leaves.log2_blocks,
                      end = (work.piece.end + (1 << leaves.log2_blocks) - 1) >> leaves.log2_blocks,
                      last_block = min_i32(work.piece.end, work.seen.blocks);
        int32_t stored = 0;
        depth_ = 0;
        for (int32_t leaf = begin; leaf < end; ++leaf) {
            strip_.clear();
            const int32_t leaf_end = min_i32((leaf + 1) << leaves.log2_blocks, last_block);
            for (int32_t block = leaf << leaves.log2_blocks; block < leaf_end; ++block) take(work, scores, block);
            add_strips();
            int32_t first = leaf;
            while (is_right_sibling(first, leaf, begin, leaves.count)) {
                first -= 1 << log2_of_node_below(first, begin);
                join_top();
            }
            const bool is_last = leaf + 1 == end;
            if (is_last && work.is_whole()) return;
            if (is_last || is_left_apart(first, leaf, begin))
                stored += store(work, columns, stored);
            else
                push();
        }
    }

    // A block: the strip's scores, P, and their share of the output.
    __device__ __forceinline__ void take(const DecodeWork& work, const ColumnScores<kConfig>& scores, int32_t block) {
        const int32_t strip = (work.seen.first_block + block) * kBlockKeys + warp_ * kStripKeys;
        const Range seen{work.seen.keys.begin - strip, work.seen.keys.end - strip};
        if (seen.end <= 0 || seen.begin >= kStripKeys) return pass_over_block();
        float s[kOctets][4];
        uint32_t p[kOctets][2];
#pragma unroll
        for (int32_t i = 0; i < kSlots; ++i) {
            shared_.ring.wait_full(ring_);
            if constexpr (kTile.dequantises())
                if (params_.k_descale.of_rows) strip_.take_key_descales(shared_.descales.of[ring_.slot], warp_);
            strip_.multiply_queries(shared_.slots[ring_.slot], i, s);
            release();
        }
        scores.apply(s, strip, lane_);
        strip_.exponentiate(s, kConfig.has_options() ? 1.0f : params_.scale_log2, p);
#pragma unroll
        for (int32_t i = 0; i < kSlots; ++i) {
            shared_.ring.wait_full(ring_);
            if constexpr (kTile.dequantises())
                if (params_.v_descale.of_rows) strip_.take_value_descales(shared_.descales.of[ring_.slot], warp_);
            strip_.multiply_values(shared_.slots[ring_.slot], i, p, seen.begin, seen.end);
            release();
        }
    }

    // Of all keys of the piece; rows' own come with them.
    __device__ __forceinline__ float descale_of(const DecodeDescale& descale, const DecodeWork& work) const {
        if (descale.data == nullptr || descale.of_rows) return 1.0f;
        return __ldg(descale.data + work.number * descale.batch_stride +
                     work.head / params_.by_column_parts * descale.head_stride);
    }

    __device__ __forceinline__ void release() {
        __syncwarp();  // ldmatrix reads for a warp
        shared_.ring.release(ring_.slot);
        ring_.advance();
    }

    // Waiting all the same: who released a slot twice before another warp has released it once would be counted for it.
    __device__ __forceinline__ void pass_over_block() {
#pragma unroll
        for (int32_t i = 0; i < 2 * kSlots; ++i) {
            shared_.ring.wait_full(ring_);
            release();
        }
    }

    // Of the kernel that only loads.
    __device__ __forceinline__ void pass_over(const DecodeWork& work) {
        for (int32_t block = work.piece.begin; block < min_i32(work.piece.end, work.seen.blocks); ++block)
            pass_over_block();
    }

    // ---- a leaf's end -----------------------------------------------------------------------------------------------

    // The four strips, through shared memory: node_ is then the leaf's.
    __device__ __forceinline__ void add_strips() {
        strip_.sum_exact();
        constexpr int32_t kRounds = kTile.columns / kTile.strip_columns();
#pragma unroll
        for (int32_t round = 0; round < kRounds; ++round) {
            ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);  // all have read what was there
            stage_strip(round * kTile.strip_columns());
            ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);
            constexpr int32_t kAtOnce = kTile.strip_columns() / kWarpgroupWarps;
#pragma unroll
            for (int32_t k = 0; k < kAtOnce; ++k) add_staged(round * kAtOnce + k, warp_ + kWarpgroupWarps * k);
        }
    }

    // Columns from `first` on.
    __device__ __forceinline__ void stage_strip(int32_t first) {
        const int32_t row = lane_ / 4, octet = first / kOctetColumns;
#pragma unroll
        for (int32_t e = 0; e < 2; ++e) {
            const int32_t column = lane_ % 4 * 2 + e - first % kOctetColumns;
            if (column < 0 || column >= kTile.strip_columns()) continue;
            float* to = shared_.strips[warp_][column];
#pragma unroll
            for (int32_t i = 0; i < kKsteps; ++i) {
                to[16 * i + strip_.channel_of(row, 0)] = strip_.o[octet][i][e];
                to[16 * i + strip_.channel_of(row, 1)] = strip_.o[octet][i][2 + e];
            }
            if (row == 0)
                shared_.strip_sums[warp_][column] = {strip_.reference[octet][e], strip_.rounded[octet][e],
                                                     strip_.exact[octet][e], 0.0f};
        }
    }

    // column: of those that are staged; it becomes the warp's k-th of the node.
    __device__ __forceinline__ void add_staged(int32_t k, int32_t column) {
        // Two and two, as a tree of their own.
        static_assert(kWarpgroupWarps == 4);
        ColumnSums sums[kWarpgroupWarps];
#pragma unroll
        for (int32_t w = 0; w < kWarpgroupWarps; ++w) sums[w] = shared_.strip_sums[w][column];
        const auto join = [](const ColumnSums& left, ColumnSums& right) {
            return join_sums(left.reference, left.rounded, left.exact, right.reference, right.rounded, right.exact);
        };
        const Factors first = join(sums[0], sums[1]), second = join(sums[2], sums[3]), both = join(sums[1], sums[3]);
        node_.reference[k] = sums[3].reference;
        node_.rounded[k] = sums[3].rounded;
        node_.exact[k] = sums[3].exact;
        constexpr int32_t kAtOnce = kValues < 4 ? kValues : 4;
#pragma unroll
        for (int32_t i = 0; i < kValues; i += kAtOnce) {
            float values[kWarpgroupWarps][kAtOnce];
#pragma unroll
            for (int32_t w = 0; w < kWarpgroupWarps; ++w)
                read_floats(values[w], &shared_.strips[w][column][lane_ * kValues + i]);
#pragma unroll
            for (int32_t x = 0; x < kAtOnce; ++x)
                node_.values[k][i + x] =
                    joined(joined(values[0][x], values[1][x], first), joined(values[2][x], values[3][x], second), both);
        }
    }

    // ---- the tree ---------------------------------------------------------------------------------------------------
    // Nodes that wait for their right sibling are on a stack: a thread's values in shared memory, the sums of level l
    // in lane l.

    template <int32_t kCount>
    static __device__ __forceinline__ void read_floats(float (&x)[kCount], const float* from) {
        if constexpr (kCount == 2) {
            const float2 pair = *reinterpret_cast<const float2*>(from);
            x[0] = pair.x;
            x[1] = pair.y;
        } else {
#pragma unroll
            for (int32_t i = 0; i < kCount; i += 4) {
                const float4 four = *reinterpret_cast<const float4*>(from + i);
                x[i] = four.x;
                x[i + 1] = four.y;
                x[i + 2] = four.z;
                x[i + 3] = four.w;
            }
        }
    }

    __device__ __forceinline__ void push() {
#pragma unroll
        for (int32_t k = 0; k < kColumns; ++k) {
            float* to = shared_.stack[depth_][k][thread_];
            if constexpr (kValues == 2) {
                *reinterpret_cast<float2*>(to) = {node_.values[k][0], node_.values[k][1]};
            } else {
#pragma unroll
                for (int32_t i = 0; i < kValues; i += 4)
                    *reinterpret_cast<float4*>(to + i) = {node_.values[k][i], node_.values[k][i + 1],
                                                          node_.values[k][i + 2], node_.values[k][i + 3]};
            }
            if (lane_ == depth_) {
                stack_reference_[k] = node_.reference[k];
                stack_rounded_[k] = node_.rounded[k];
                stack_exact_[k] = node_.exact[k];
            }
        }
        ++depth_;
    }

    // The stack's top becomes its last node's left half.
    __device__ __forceinline__ void join_top() {
        --depth_;
#pragma unroll
        for (int32_t k = 0; k < kColumns; ++k) {
            float left[kValues];
            read_floats(left, shared_.stack[depth_][k][thread_]);
            const Factors factors = join_sums(
                __shfl_sync(~0u, stack_reference_[k], depth_), __shfl_sync(~0u, stack_rounded_[k], depth_),
                __shfl_sync(~0u, stack_exact_[k], depth_), node_.reference[k], node_.rounded[k], node_.exact[k]);
#pragma unroll
            for (int32_t x = 0; x < kValues; ++x) node_.values[k][x] = joined(left[x], node_.values[k][x], factors);
        }
    }

    // The stack's top takes node_'s place.
    __device__ __forceinline__ void pop() {
        --depth_;
#pragma unroll
        for (int32_t k = 0; k < kColumns; ++k) {
            read_floats(node_.values[k], shared_.stack[depth_][k][thread_]);
            node_.reference[k] = __shfl_sync(~0u, stack_reference_[k], depth_);
            node_.rounded[k] = __shfl_sync(~0u, stack_rounded_[k], depth_);
            node_.exact[k] = __shfl_sync(~0u, stack_exact_[k], depth_);
        }
    }

    // node_ and those on the stack go to the workspace, behind `stored` others of the piece. Returns how many.
    __device__ __forceinline__ int32_t store(const DecodeWork& work, const PieceColumns& columns, int32_t stored) {
        const int32_t count = depth_ + 1;
        for (;;) {
            const int64_t place = params_.sets.node(work.node_set, stored + depth_);
            store_node<kTile>(params_.nodes + place * kTile.node_floats(), node_, columns.count, thread_);
            if (depth_ == 0) return count;
            pop();
        }
    }

    // ---- a sequence's end -------------------------------------------------------------------------------------------

    // is_first: the piece is the CTA's first.
    __device__ __forceinline__ void finish(const DecodeWork& work, const PieceColumns& columns, bool is_first) {
        if (!work.is_whole()) {
            if (!brings_last(work)) return;
            put_together(work, columns, is_first);
        }
        write_output<kConfig>(params_, work, columns, node_, thread_);
        if (!work.is_whole()) ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);  // the map may be written anew
    }

    // Are all blocks of the sequence worked out, with this piece's? Then its nodes are there for this CTA to read, and
    // its count is zero again.
    __device__ __forceinline__ bool brings_last(const DecodeWork& work) {
        ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);  // all threads' nodes are written
        if (thread_ == 0) {
            const auto count = static_cast<int32_t>(count_of(work.before, shared_.deal));
            int32_t* arrived = params_.arrived + count * params_.heads + work.head;
            const int32_t blocks = work.piece.end - work.piece.begin;
            shared_.is_last = ptx::atomic_add_acq_rel(arrived, blocks) + blocks == work.seen.counted_blocks();
            if (shared_.is_last) *arrived = 0;
        }
        ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);
        return shared_.is_last;
    }

    __device__ __forceinline__ void put_together(const DecodeWork& work, const PieceColumns& columns, bool is_first) {
        // The finding warp has the map for the first piece; only then may another's be written.
        if (first_is_partial_) ptx::mbarrier_wait(shared_.map_ready, 0);
        if (!is_first) {
            if (warp_ == 0) map_nodes<kTile>(shared_.map, shared_.deal, params_, work, lane_);
            ptx::barrier_sync(kDecodeConsumers, kWarpgroupThreads);
        }
        // Few nodes in few instructions: this is run once, and takes as long as it takes to fetch those.
        constexpr int32_t kMost = kTile.nodes_at_once(), kFew = kMost < 8 ? kMost : 8, kSome = kMost < 16 ? kMost : 16;
        const int32_t log2 = shared_.map.log2_leaves,
                      places = (leaves_of(work.seen.counted_blocks(), kTile.levels).count + (1 << log2) - 1) >> log2;
        if (places <= kFew)
            join_nodes<kFew>(columns, places);
        else if (places <= kSome)
            join_nodes<kSome>(columns, places);
        else
            join_nodes<kMost>(columns, places);
    }

    template <int32_t kNodes>
    __device__ __forceinline__ void join_nodes(const PieceColumns& columns, int32_t places) {
        depth_ = 0;
#pragma unroll 1
        for (int32_t round = 0; round * kNodes < places; ++round) {
            NodesAtOnce<kTile, kNodes>(shared_.map, params_.nodes, round * kNodes, places - round * kNodes,
                                       columns.count, thread_)
                .join(node_);
            for (int32_t siblings = round; siblings % 2 == 1; siblings /= 2) join_top();
            if ((round + 1) * kNodes < places) push();
        }
        while (depth_ > 0) join_top();
    }

    DecodeShared<kConfig>& shared_;
    const DecodeParams& params_;
    const int32_t thread_, warp_, lane_;
    RingPosition<kTile.slots> ring_;
    RingPosition<kTile.works> works_;
    Strip<kConfig> strip_;
    Node<kTile> node_;
    int32_t depth_ = 0;
    bool first_is_partial_ = false;
    float stack_reference_[kColumns], stack_rounded_[kColumns], stack_exact_[kColumns];
};

}  // namespace foveal::sm90
