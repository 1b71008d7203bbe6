// What the widest kernels (widest.cuh) have in shared memory, and their producer warps.
#pragma once

#include <cstdint>

#include "sm90/backward/wide.cuh"

namespace foveal::sm90 {

// 0 is that of __syncthreads().
enum WidestBarrier : int32_t { kFactorsStored = 1, kFactorsRead = 2 };

struct WidestTask {
    BackwardTask of;          // the sequence's; of keys also what the rows of keys are
    int32_t head;             // of the own rows
    int32_t row;              // the first of its own, of the sequence
    Range visited, unmasked;  // tiles of the other side
};

template <BackwardConfig kConfig, WidestGradient kGradient>
struct WidestShared {
    using W = Wide<kConfig>;
    static constexpr bool kOfKeys = kGradient != WidestGradient::dq;
    static constexpr bool kHasDp = kGradient != WidestGradient::dv;
    static constexpr int32_t kColumns = kWarpgroupRows / kBackwardConsumers;  // of the scores, that a warpgroup has
    static constexpr int32_t kPanels = W::kHeadDim / kPanelColumns;
    static constexpr int32_t kPanelSlots = 3;
    static constexpr int32_t kPanelElements = W::kRows * kPanelColumns;
    static constexpr int32_t kWhole = 0, kByPanels = 1;  // of own rows: those that are multiplied with either

    alignas(1024) uint16_t own[2][W::kElements];
    uint16_t whole[W::kElements];
    uint16_t panels[kPanelSlots][kPanelElements];
    uint4 factors[W::kSteps][kWarpgroupThreads];
    // Where the others are queries: -lse comes with the whole tile and stays as long, -delta with the first panel.
    float neg_lse[kBackwardQueries], neg_delta[kBackwardQueries];
    WidestTask task;
    Ring<1> whole_ring;
    Ring<kPanelSlots> panel_ring;
    uint64_t own_full[2], landed[2];
};

template <BackwardConfig kConfig, WidestGradient kGradient>
__device__ __forceinline__ void produce_widest(WidestShared<kConfig, kGradient>& shared, const BackwardMaps& maps,
                                               const BackwardParams& params) {
    using Shared = WidestShared<kConfig, kGradient>;
    using Panel = TileLoad<kWarpgroupRows, kPanelColumns>;
    constexpr bool kOfKeys = Shared::kOfKeys, kIsDv = kGradient == WidestGradient::dv;
    const int32_t warp = uniform(static_cast<int32_t>(threadIdx.x) / kWarpThreads);
    if (warp > 1) return;
    const bool is_whole = warp == Shared::kWhole;
    const WidestTask& task = shared.task;
    const BackwardTask& sequence = task.of;
    const SequenceRows own = kOfKeys ? sequence.k : sequence.q, others = kOfKeys ? sequence.q : sequence.k;
    const Range own_used = kOfKeys ? sequence.seen : sequence.seeing,
                others_used = kOfKeys ? sequence.seeing : sequence.seen;
    const int32_t own_mapped = kOfKeys ? params.mapped_rows_k : params.mapped_rows_q,
                  others_mapped = kOfKeys ? params.mapped_rows_q : params.mapped_rows_k;
    const CUtensorMap& own_map = kOfKeys ? (is_whole || kIsDv ? maps.k : maps.v) : (is_whole ? maps.q : maps.dout);
    const CUtensorMap& others_map = kOfKeys ? (is_whole != kIsDv ? maps.q : maps.dout) : (is_whole ? maps.k : maps.v);
    RingPosition<1> landing, whole;
    RingPosition<Shared::kPanelSlots> panels;
    if (!(is_whole && kIsDv))
        typename Shared::W::template Load<Shared::W::kHeadDim>{shared.own[warp], own_map,        own.first, task.row,
                                                               task.head,        sequence.batch, nullptr,   nullptr}
            .issue_used(shared.own_full[warp], shared.landed[warp], landing, own_used, own_mapped);
    BackwardStep step = BackwardStep::first(task.visited, true);
    for (bool more = true; more; more = step.advance(task.visited, true, kOfKeys ? params.heads_per_kv : 1)) {
        const int32_t row = step.tile * kWarpgroupRows;
        const int32_t head = kOfKeys ? task.head * params.heads_per_kv + step.head : task.head / params.heads_per_kv;
        const int64_t of_rows = kOfKeys ? params.unit(sequence.slot + step.tile, head) * kBackwardQueries : 0;
        const float* const neg_lse = params.workspace.neg_lse + of_rows;
        const float* const neg_delta = params.workspace.neg_delta + of_rows;
        if (is_whole) {
            shared.whole_ring.wait_free(whole);
            typename Shared::W::template Load<Shared::W::kHeadDim>{
                shared.whole, others_map, others.first, row, head, sequence.batch, kOfKeys ? shared.neg_lse : nullptr,
                neg_lse}
                .issue_used(shared.whole_ring.full[0][0], shared.landed[warp], landing, others_used, others_mapped);
            whole.advance();
            continue;
        }
        for (int32_t panel = 0; panel < Shared::kPanels; ++panel) {
            shared.panel_ring.wait_free(panels);
            Panel{shared.panels[panels.slot],
                  others_map,
                  others.first,
                  row,
                  head,
                  sequence.batch,
                  kOfKeys && !kIsDv && panel == 0 ? shared.neg_delta : nullptr,
                  neg_delta,
                  panel * kPanelColumns}
                .issue_used(shared.panel_ring.full[panels.slot][0], shared.landed[warp], landing, others_used,
                            others_mapped);
            panels.advance();
        }
    }
}

}  // namespace foveal::sm90
