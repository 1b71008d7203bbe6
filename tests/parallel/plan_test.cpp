// Plans: who sends what, how much memory it takes, which method is chosen, and what is refused.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "foveal/types.hpp"
#include "parallel/plan.hpp"
#include "tests/parallel/ranks.hpp"

namespace foveal_testing {
namespace {

using foveal::parallel::Plan;

// Shapes of one rank's call, without memory.
struct Asked {
    foveal_forward_args forward{};
    foveal_parallel_args args{};
    std::vector<foveal_span> spans;

    Asked(const char* text, int32_t rank, int32_t ranks, foveal_placement placement,
          foveal_parallel_method method = FOVEAL_PARALLEL_AUTO) {
        const Case c = parse_case(text);
        forward = shape_args(c, FOVEAL_BACKEND_CPU);
        spans = placed(placement, {c.rows_k}, ranks);
        int64_t rows = 0;
        for (const foveal_span& span : spans)
            if (span.rank == rank) rows += span.rows;
        for (foveal_tensor* t : {&forward.q, &forward.k, &forward.v, &forward.out}) t->shape[1] = rows;
        if (forward.lse.rank != 0) forward.lse.shape[2] = rows;
        foveal_parallel_args_init(&args);
        args.method = method;
        args.rank = rank;
        args.ranks = ranks;
        args.forward = &forward;
        args.spans_q = spans.data();
        args.spans_q_count = static_cast<int64_t>(spans.size());
    }
    Asked(const Asked&) = delete;
    Asked& operator=(const Asked&) = delete;

    Plan plan() const { return foveal::parallel::make_plan(args); }
};

constexpr const char* kLong = "b1 s65536 hq32 hk8 d128 bf16 ";

TEST(ParallelPlan, ARingHoldsOneForeignShard) {
    for (const char* const mask : {"causal", "full", "left4096 causal"}) {
        for (const int32_t ranks : {2, 3, 8}) {
            const Asked asked((std::string(kLong) + mask).c_str(), 1, ranks, FOVEAL_ZIGZAG, FOVEAL_PARALLEL_RING);
            const Plan plan = asked.plan();
            int64_t largest = 0;
            for (const int64_t rows : plan.k.rows_of_rank) largest = std::max(largest, rows);
            const auto shard = static_cast<uint64_t>(largest * 8 * (128 + 128) * 2);
            const uint64_t held = plan.regions.keys.bytes + plan.regions.values.bytes;
            EXPECT_LE(held, shard) << mask << " over " << ranks;
            EXPECT_GT(held, 0U);
        }
    }
}

// Of a window's neighbour nothing travels but what the window reaches; the others send nothing.
TEST(ParallelPlan, AWindowTouchesItsNeighbourAlone) {
    const Asked asked("b1 s65536 hq32 hk8 d128 bf16 left4096 causal", 3, 8, FOVEAL_CONTIGUOUS, FOVEAL_PARALLEL_RING);
    const Plan plan = asked.plan();
    for (size_t hop = 0; hop < 8; ++hop) EXPECT_EQ(plan.schedule.hops[hop].buffer_rows, hop == 1 ? 4096 : 0);
    for (size_t hop = 0; hop < 8; ++hop) EXPECT_EQ(plan.sends[hop].size(), hop == 1 ? 1U : 0U);
    EXPECT_EQ(plan.sends[1][0].crew, 4);
    EXPECT_EQ(plan.sends[1][0].rows, 4096);
    ASSERT_EQ(plan.schedule.stretches.size(),
              2U);  // the rows that need the neighbour, and the rest, which is not merged
    EXPECT_EQ(plan.schedule.stretches[0].rows, 4096);
    EXPECT_EQ(plan.schedule.stretches[1].cells.size(), 1U);
}

// Every visible pair is in one cell, whatever the placement.
TEST(ParallelPlan, CellsHoldEveryPairOnce) {
    for (const char* const mask : {"full", "causal", "left300 right20", "chunk1000 causal", "left100 chunk512"}) {
        const std::string text = "b1 s5000 h2 d64 bf16 " + std::string(mask);
        const double expected = parse_case(text).visible_pairs();
        for (const auto placement : {FOVEAL_CONTIGUOUS, FOVEAL_ZIGZAG}) {
            for (const auto method : {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER}) {
                double pairs = 0;
                for (int32_t rank = 0; rank < 5; ++rank) {
                    const Asked asked(text.c_str(), rank, 5, placement, method);
                    for (const auto& stretch : asked.plan().schedule.stretches)
                        for (const auto& cell : stretch.cells) pairs += cell.pairs;
                }
                EXPECT_EQ(pairs, expected) << text << " placement " << placement << " method " << method;
            }
        }
    }
}

TEST(ParallelPlan, ZigzagBalancesCausal) {
    const auto kernels = [](foveal_placement placement) {
        // With the log-sum-exp parts cost what plain calls cost.
        const Asked asked("b1 s131072 hq32 hk8 d128 bf16 causal lse", 0, 8, placement, FOVEAL_PARALLEL_RING);
        return asked.plan().considered[0].compute;
    };
    const double whole = 4.0 * 128 * 32 * 131072.0 * 131073 / 2 / 791e12;  // seconds of one card's tensor cores
    EXPECT_LT(kernels(FOVEAL_ZIGZAG), 1.1 * whole / 8);
    EXPECT_GT(kernels(FOVEAL_CONTIGUOUS), 1.7 * whole / 8);
}

// All ranks plan alike: they choose one method, and what one expects another sends.
TEST(ParallelPlan, RanksAgree) {
    for (const char* const text : {"b1 s65536 hq32 hk8 d128 bf16 causal", "b2 s500 hq8 hk8 d64 bf16 left100"}) {
        std::vector<std::vector<std::multiset<int64_t>>> sent(8, std::vector<std::multiset<int64_t>>(8)),
            expected = sent;
        std::set<std::pair<bool, int32_t>> methods;
        for (int32_t rank = 0; rank < 8; ++rank) {
            const Asked asked(text, rank, 8, FOVEAL_ZIGZAG);
            const Plan plan = asked.plan();
            methods.insert({plan.method.gathers, plan.method.head_ranks});
            const auto at = [](int32_t i) { return static_cast<size_t>(i); };
            for (size_t hop = 0; hop < plan.sends.size(); ++hop) {
                for (const auto& send : plan.sends[hop]) sent[at(plan.crew())][at(send.crew)].insert(send.rows);
                for (const auto& t : plan.schedule.hops[hop].transfers)
                    expected[at(t.source)][at(plan.crew())].insert(t.rows);
            }
        }
        EXPECT_EQ(methods.size(), 1U) << text;
        EXPECT_EQ(sent, expected) << text;
    }
}

// Where each method wins, by the model.
TEST(ParallelPlan, TheFastestIsTaken) {
    const auto taken = [](const char* text, int32_t ranks, foveal_placement placement) {
        const Asked asked(text, 0, ranks, placement);
        const Plan plan = asked.plan();
        for (const auto& other : plan.considered) EXPECT_LE(plan.considered[0].seconds, other.seconds);
        return plan.method;
    };
    const auto narrow = taken("b1 s524288 hq32 hk8 d128 bf16 left4096 causal", 2, FOVEAL_CONTIGUOUS);
    EXPECT_EQ(narrow.head_ranks, 1);  // rows for heads would move all of q, k, v and out
    EXPECT_FALSE(narrow.gathers);     // and gathering copies what is here already
    const auto few_heads = taken("b1 s65536 hq8 hk1 d128 bf16 causal", 2, FOVEAL_ZIGZAG);
    EXPECT_EQ(few_heads.head_ranks, 1);
}

TEST(ParallelPlan, SaysWhy) {
    const Asked asked("b1 s65536 hq32 hk8 d128 bf16 causal", 1, 4, FOVEAL_ZIGZAG);
    foveal_parallel_plan* plan = nullptr;
    ASSERT_EQ(foveal_parallel_plan_create(&asked.args, &plan), FOVEAL_OK) << foveal_last_error();
    size_t needed = 0;
    ASSERT_EQ(foveal_parallel_plan_describe(plan, nullptr, 0, &needed), FOVEAL_OK);
    std::string text(needed, '\0');
    ASSERT_EQ(foveal_parallel_plan_describe(plan, text.data(), text.size(), nullptr), FOVEAL_OK);
    for (const char* const part : {"rank       1 of 4: q 16384 rows", "ring", "all_gather", "ulysses of 4",
                                   "ulysses of 2, ring of 2", "links 360 GB/s", "workspace  "})
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    foveal_parallel_plan_destroy(plan);
}

TEST(ParallelPlan, OffsetsForDistancesAlone) {
    const auto offsets = [](const char* text) {
        const Asked asked(text, 1, 2, FOVEAL_CONTIGUOUS, FOVEAL_PARALLEL_RING);
        return asked.plan().offsets;
    };
    EXPECT_EQ(offsets("b1 s1000 h2 d64 bf16 causal"), std::vector<int32_t>());
    EXPECT_EQ(offsets("b1 s1000 h2 d64 bf16 causal alibi"), (std::vector<int32_t>{0, 500}));
}

// ---- what is refused

void expect_refused(const Asked& asked, foveal_status status, const std::string& message) {
    foveal_parallel_plan* plan = nullptr;
    EXPECT_EQ(foveal_parallel_plan_create(&asked.args, &plan), status) << message;
    EXPECT_NE(std::string(foveal_last_error()).find(message), std::string::npos) << foveal_last_error();
}

void expect_refused(void (*change)(Asked&), foveal_status status, const std::string& message) {
    Asked asked("b1 s1000 hq4 hk2 d64 bf16 causal", 1, 2, FOVEAL_CONTIGUOUS);
    change(asked);
    expect_refused(asked, status, message);
}

TEST(ParallelPlan, RefusesByName) {
    const auto some = [](foveal_tensor& t) { t = {nullptr, FOVEAL_I32, 1, {1}, {1}}; };
    static const auto tensor = some;
    expect_refused([](Asked& a) { tensor(a.forward.query_offset); }, FOVEAL_UNSUPPORTED, "forward.query_offset");
    expect_refused([](Asked& a) { tensor(a.forward.seqused_k); }, FOVEAL_UNSUPPORTED, "forward.seqused_k");
    expect_refused([](Asked& a) { tensor(a.forward.block_table); }, FOVEAL_UNSUPPORTED, "forward.block_table");
    expect_refused([](Asked& a) { tensor(a.forward.tree_mask); }, FOVEAL_UNSUPPORTED, "forward.tree_mask");
    expect_refused([](Asked& a) { a.forward.k.dtype = FOVEAL_E4M3; }, FOVEAL_UNSUPPORTED, "forward.k.dtype is e4m3");
    expect_refused([](Asked& a) { tensor(a.forward.v_descale); }, FOVEAL_UNSUPPORTED, "forward.v_descale is present");
    expect_refused([](Asked& a) { a.forward.dropout_p = 0.5f; }, FOVEAL_UNSUPPORTED, "forward.dropout_p is 0.5");
    expect_refused([](Asked& a) { a.forward.workspace_bytes = 16; }, FOVEAL_UNSUPPORTED, "forward.workspace");
    expect_refused([](Asked& a) { a.forward.reserved = 1; }, FOVEAL_UNSUPPORTED, "forward has an option");
    expect_refused([](Asked& a) { a.forward.backend = FOVEAL_BACKEND_AUTO; }, FOVEAL_INVALID_ARGUMENT,
                   "forward.backend is 0");
    expect_refused([](Asked& a) { a.forward.k.stride[1] += 8; }, FOVEAL_UNSUPPORTED, "forward.k.stride[1]");
    expect_refused([](Asked& a) { a.forward.q.shape[1] = a.forward.out.shape[1] = 499; }, FOVEAL_INVALID_ARGUMENT,
                   "forward.q has 499 rows; the spans of rank 1 have 500");
    expect_refused([](Asked& a) { a.forward.window_left = -5; }, FOVEAL_INVALID_ARGUMENT, "window_left is -5");
    expect_refused([](Asked& a) { a.args.rank = 2; }, FOVEAL_INVALID_ARGUMENT, "rank is 2");
    expect_refused([](Asked& a) { a.args.method = 9; }, FOVEAL_INVALID_ARGUMENT, "method is 9");
    expect_refused([](Asked& a) { a.args.head_ranks = 2; }, FOVEAL_INVALID_ARGUMENT, "head_ranks is 2");
    expect_refused([](Asked& a) { a.args.struct_size = 8; }, FOVEAL_INVALID_ARGUMENT, "args.struct_size is 8");
    expect_refused([](Asked& a) { a.args.forward = nullptr; }, FOVEAL_INVALID_ARGUMENT, "forward is NULL");
    expect_refused([](Asked& a) { a.args.link_bytes_per_second = -1; }, FOVEAL_INVALID_ARGUMENT, "link_bytes");
}

TEST(ParallelPlan, RefusesSpansThatDoNotFit) {
    expect_refused([](Asked& a) { a.spans[0].rank = 2; }, FOVEAL_INVALID_ARGUMENT, "spans_q[0].rank is 2");
    expect_refused([](Asked& a) { a.spans[1].position = 400; }, FOVEAL_INVALID_ARGUMENT, "row 400 of sequence 0 twice");
    expect_refused([](Asked& a) { a.spans[1].position = 501; }, FOVEAL_INVALID_ARGUMENT,
                   "row 500 of sequence 0 nowhere");
    Asked batch("b2 s1000 h2 d64 bf16", 1, 2, FOVEAL_CONTIGUOUS);
    batch.spans[1].sequence = 1, batch.spans[1].position = 0;
    expect_refused(batch, FOVEAL_INVALID_ARGUMENT, "spans name 2 sequences; tensors of a batch have one");
    Asked with_mask("b1 s1000 h2 d64 bf16 mask=11q1", 1, 2, FOVEAL_CONTIGUOUS);
    with_mask.spans[1].sequence = 1, with_mask.spans[1].position = 0;
    expect_refused(with_mask, FOVEAL_INVALID_ARGUMENT, "forward.mask is present; it needs one sequence");
    expect_refused([](Asked& a) { a.spans[0].rows = -1; }, FOVEAL_INVALID_ARGUMENT, "spans_q[0].rows is -1");
    expect_refused([](Asked& a) { a.args.spans_q = nullptr; }, FOVEAL_INVALID_ARGUMENT, "spans_q is NULL");
}

TEST(ParallelPlan, UlyssesNeedsHeadsThatDivide) {
    expect_refused(Asked("b1 s1000 hq3 hk3 d64 bf16", 0, 2, FOVEAL_CONTIGUOUS, FOVEAL_PARALLEL_ULYSSES),
                   FOVEAL_UNSUPPORTED, "do not divide 3 query heads");
    Asked with_bias("b1 s1000 hq4 hk4 d64 bf16 bias=11", 0, 2, FOVEAL_CONTIGUOUS, FOVEAL_PARALLEL_ULYSSES);
    with_bias.forward.bias.shape[2] = 500;
    expect_refused(with_bias, FOVEAL_UNSUPPORTED, "a bias or a mask is present");
}

TEST(Place, HasEveryRowOnce) {
    for (const auto placement : {FOVEAL_CONTIGUOUS, FOVEAL_ZIGZAG}) {
        for (const int32_t ranks : {1, 2, 3, 7, 64}) {
            const std::vector<int64_t> lengths{0, 1, 5, 128, 1000, 3};
            const std::vector<foveal_span> spans = placed(placement, lengths, ranks);
            const auto layout = foveal::parallel::layout_of(spans, ranks, "spans");  // refuses anything else
            EXPECT_EQ(layout.length_of, (std::vector<int64_t>{0, 1, 5, 128, 1000, 3}));
            if (placement == FOVEAL_ZIGZAG) continue;
            for (const int64_t rows : layout.rows_of_rank) EXPECT_NEAR(static_cast<double>(rows), 1137.0 / ranks, 1);
        }
    }
    const int64_t negative = -1;
    int64_t needed = 0;
    EXPECT_EQ(foveal_place(FOVEAL_ZIGZAG, &negative, 1, 2, nullptr, 0, &needed), FOVEAL_INVALID_ARGUMENT);
    EXPECT_EQ(foveal_place(7, nullptr, 0, 2, nullptr, 0, &needed), FOVEAL_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace foveal_testing
