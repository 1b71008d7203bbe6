// What the kernel that sums over scores (score_sums.cuh) has in shared memory, what a CTA of it is to sum, and its
// producer warp.
#pragma once

#include <cstdint>

#include "sm90/backward/producer.cuh"
#include "sm90/backward/score_sums.hpp"
#include "sm90/ptx/bulk_copy.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/warp.cuh"
#include "sm90/tile/panel.hpp"
#include "sm90/tile/pipeline.cuh"

namespace foveal::sm90 {

// 0 is that of __syncthreads().
enum ScoreSumsBarrier : int32_t { kWarpSumsStored = 1 };

// A tile of scores. What it needs beside products lies with it.
struct ScoreStep {
    alignas(16) float neg_lse[kBackwardQueries];
    float neg_delta[kBackwardQueries];
    BackwardTask task;
    int32_t head, query_tile;
    int32_t is_last;  // 1: there are no more
};

struct ScoreSumsShared {
    static constexpr int32_t kStages = 5;  // so that two CTAs fit an SM
    static constexpr int32_t kSteps = 3;
    static constexpr int32_t kPanelElements = kWarpgroupRows * kPanelColumns;
    alignas(1024) uint16_t keys[kStages][kPanelElements];  // of V or K
    uint16_t queries[kStages][kPanelElements];             // of dO or Q
    ScoreStep steps[kSteps];
    float warp_sums[kWarpgroupWarps][kBackwardQueries];
    Ring<kSteps> step_ring;
    Ring<kStages> panel_ring;
    uint64_t landed;
};
static_assert(sizeof(ScoreSumsShared) <= kScoreSumsSharedBytes);

// What the CTA is to sum.
struct ScoreSumsTask {
    ScoreTiles place;
    int32_t part;
    int32_t begin, end;  // summands

    __device__ __forceinline__ static ScoreSumsTask of(const ScoreSumsParams& params) {
        const auto cta = static_cast<int32_t>(blockIdx.x);
        if (!params.of_slopes) {
            const BiasSums& sums = params.sums;
            if (sums.parts == 1) return {sums.place(cta), 0, 0, sums.summands()};
            const int32_t part = cta % sums.parts;
            return {sums.place(cta / sums.parts), part, sums.first_summand(part), sums.first_summand(part + 1)};
        }
        // A query tile of a head.
        const BackwardSequences& sequences = params.backward.sequences;
        const int32_t slot = cta / params.backward.heads_q;
        const int32_t sequence = query_slots().sequence_at(sequences.q, sequences.batch, slot);
        return {
            {sequence, cta % params.backward.heads_q, slot - query_slots().of(sequences.q, sequence), -1}, slot, 0, 1};
    }
};

class ScoreSumsProducer {
    using Panel = TileLoad<kWarpgroupRows, kPanelColumns>;

   public:
    __device__ __forceinline__ ScoreSumsProducer(ScoreSumsShared& shared, const BackwardMaps& maps,
                                                 const ScoreSumsParams& params)
        : shared_(shared), maps_(maps), params_(params) {}

    __device__ __forceinline__ void run(const ScoreSumsTask& task) {
        for (int32_t n = task.begin; n < task.end; ++n)
            visit(params_.of_slopes ? task.place : params_.sums.summand(task.place, n));
        shared_.step_ring.wait_free(steps_);
        if (ptx::lane_id() == 0) {
            shared_.steps[steps_.slot].is_last = 1;
            ptx::mbarrier_arrive(shared_.step_ring.full[steps_.slot][0]);
        }
    }

   private:
    __device__ __forceinline__ void visit(const ScoreTiles& tiles) {
        const BackwardParams& params = params_.backward;
        const BackwardSequence sequence = params.sequences.of(tiles.sequence);
        const Range key_tiles = key_tiles_of(tiles, sequence.band, sequence.q.length);
        BackwardTask task{};
        task.sequence = tiles.sequence;
        task.batch = params.sequences.is_varlen() ? 0 : tiles.sequence;
        task.head_k = tiles.head / params.heads_per_kv;
        task.q = sequence.q;
        task.k = sequence.k;
        task.seen = sequence.seen;
        task.seeing = sequence.seeing;
        task.slot = sequence.slot;
        task.band = sequence.band;
        for (int32_t tile = key_tiles.begin; tile < key_tiles.end; ++tile) {
            task.key = tile * kSumKeys;
            publish(task, tiles);
            load(task, tiles, maps_.v, maps_.dout, params.head_dim_v);
            load(task, tiles, maps_.k, maps_.q, params.head_dim);
        }
    }

    __device__ __forceinline__ void publish(const BackwardTask& task, const ScoreTiles& tiles) {
        constexpr int32_t kBytes = kBackwardQueries * 4;
        const BackwardWorkspace& workspace = params_.backward.workspace;
        const int64_t row = params_.backward.unit(task.slot + tiles.query_tile, tiles.head) * kBackwardQueries;
        shared_.step_ring.wait_free(steps_);
        if (ptx::lane_id() == 0) {
            ScoreStep& step = shared_.steps[steps_.slot];
            uint64_t& full = shared_.step_ring.full[steps_.slot][0];
            step.task = task;
            step.head = tiles.head;
            step.query_tile = tiles.query_tile;
            step.is_last = 0;
            ptx::mbarrier_arrive_expect_tx(full, 2 * kBytes);
            ptx::bulk_load(step.neg_lse, workspace.neg_lse + row, kBytes, full);
            ptx::bulk_load(step.neg_delta, workspace.neg_delta + row, kBytes, full);
        }
        __syncwarp();
        steps_.advance();
    }

    __device__ __forceinline__ void load(const BackwardTask& task, const ScoreTiles& tiles, const CUtensorMap& keys,
                                         const CUtensorMap& queries, int32_t columns) {
        const BackwardParams& params = params_.backward;
        for (int32_t column = 0; column < columns; column += kPanelColumns) {
            const int32_t slot = panels_.slot;
            uint64_t& full = shared_.panel_ring.full[slot][0];
            shared_.panel_ring.wait_free(panels_);
            Panel{shared_.keys[slot], keys, task.k.first, task.key, task.head_k, task.batch, nullptr, nullptr, column}
                .issue_used(full, shared_.landed, landing_, task.seen, params.mapped_rows_k);
            Panel{shared_.queries[slot],
                  queries,
                  task.q.first,
                  tiles.query_tile * kBackwardQueries,
                  tiles.head,
                  task.batch,
                  nullptr,
                  nullptr,
                  column}
                .issue_used(full, shared_.landed, landing_, task.seeing, params.mapped_rows_q);
            panels_.advance();
        }
    }

    ScoreSumsShared& shared_;
    const BackwardMaps& maps_;
    const ScoreSumsParams& params_;
    RingPosition<ScoreSumsShared::kSteps> steps_;
    RingPosition<ScoreSumsShared::kStages> panels_;
    RingPosition<1> landing_;
};

}  // namespace foveal::sm90
