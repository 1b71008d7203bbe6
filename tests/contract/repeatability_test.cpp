// The same bits, and resources (contract 1.7 and 1.8), on the CPU backend.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.7 Repeatability

TEST(Contract_1_7, TheSameBitsOnEveryRun) {
    for (const std::string text : {"b3 sq130 sk201 hq8 hk2 d64 bf16 causal lse", "b1 s700 h2 d40 f32 lse",
                                   "varlen qlens=5,0,130,70 klens=64,9,300,1 h4 d64 f16 causal lse"}) {
        const auto first = run(text);
        for (int again = 0; again < 3; ++again) {
            const auto data = run(text);
            EXPECT_EQ(data->bytes(TensorId::kOut), first->bytes(TensorId::kOut)) << text;
            EXPECT_EQ(data->bytes(TensorId::kLse), first->bytes(TensorId::kLse)) << text;
        }
    }
}

// The first sequence of a batch draws the same inputs whatever follows it.
TEST(Contract_1_7, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d64 bf16 causal lse", " hq4 hk2 d64 f32 lse", " h1 d64 f16 lse",
                                   " hq12 hk2 d64 bf16 softcap30 sd10 lse", " hq8 hk1 d64 f32 alibi causal lse"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq131 sk203", "b9 sq131 sk203"},
              {"b1 sq1 sk1000", "b9 sq1 sk1000"},
              {"b1 sq3 sk2900", "b9 sq3 sk2900"},
              {"varlen qlens=2 klens=1500", "varlen qlens=2,300,0,1,16 klens=1500,300,9,4000,1100"},
              {"varlen qlens=131 klens=203",
               "varlen qlens=131,5,0,300,64,9,1,128,77 klens=203,9,4,0,64,500,1,128,300"}}) {
            const auto one = run(alone + tail), nine = run(together + tail);
            for (int64_t head = 0; head < one->the_case().heads_q; ++head) {
                EXPECT_TRUE(same_bits(rows_of(*one, TensorId::kOut, 0, head), rows_of(*nine, TensorId::kOut, 0, head)))
                    << together + tail;
                EXPECT_TRUE(same_bits(rows_of(*one, TensorId::kLse, 0, head), rows_of(*nine, TensorId::kLse, 0, head)))
                    << together + tail;
            }
        }
    }
}

// The keys of few query rows are cut into parts, which any thread may compute and the last one merges.
TEST(Contract_1_7, TheNumberOfThreadsChangesNoBit) {
    for (const std::string text :
         {"b2 sq1 sk5000 hq8 hk2 d64 bf16 lse", "b1 sq16 sk3000 hq8 hk1 d64 f32 causal lse",
          "b1 sq5 sk2500 h2 d72 f16 left900 softcap5 sinks lse", "b2 s300 h3 d64 f32 causal lse"}) {
        ASSERT_EQ(foveal_set_num_threads(1), FOVEAL_OK);
        const auto one = run(text);
        for (const int32_t threads : {2, 5}) {
            ASSERT_EQ(foveal_set_num_threads(threads), FOVEAL_OK);
            const auto more = run(text);
            EXPECT_EQ(more->bytes(TensorId::kOut), one->bytes(TensorId::kOut)) << text;
            EXPECT_EQ(more->bytes(TensorId::kLse), one->bytes(TensorId::kLse)) << text;
        }
        ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
    }
}

// ---- 1.8 Resources

TEST(Contract_1_8, MemoryDoesNotGrowWithTheSquareOfTheLength) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "SKIPPED: AddressSanitizer keeps freed memory";
#endif
    const auto data = make_case_data(parse_case("s12000 h1 d16 f32 causal"), kCpu);  // scores: 576 MB
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 32 * 1024) << "KiB more at the peak";
}

TEST(Contract_1_8, AKeptPlanNeedsNoWorkspaceAndGivesTheSameBits) {
    const auto expected = run("b2 sq70 sk90 hq4 hk2 d24 f32 causal lse");
    const auto data = make_case_data(expected->the_case(), kCpu);
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&data->args(), -1, &plan), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_plan_workspace_bytes(plan), 0u);
    EXPECT_EQ(foveal_plan_launch(plan, &data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    foveal_plan_destroy(plan);
    EXPECT_EQ(data->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
}

TEST(Contract_1_8, SeveralThreadsAtOnce) {
    const std::string text = "b2 sq130 sk201 hq8 hk2 d64 bf16 causal lse";
    const auto expected = run(text);
    std::vector<std::unique_ptr<CaseData>> data;
    for (int i = 0; i < 4; ++i) data.push_back(make_case_data(parse_case(text), kCpu));
    std::vector<std::thread> threads;
    std::vector<foveal_status> statuses(4, FOVEAL_INTERNAL_ERROR);
    for (size_t i = 0; i < 4; ++i) {
        threads.emplace_back([&, i] {
            for (int n = 0; n < 5; ++n) statuses[i] = foveal_forward(&data[i]->args(), nullptr);
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(statuses[i], FOVEAL_OK);
        EXPECT_EQ(data[i]->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
    }
}

// A plan can be read before there is a GPU to run it on.
TEST(Contract_1_8, PlansForAGpuNeedNone) {
    const foveal_forward_args args =
        shape_args(parse_case("b128 s1024 hq32 hk8 d128 bf16 causal"), FOVEAL_BACKEND_SM90);
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_plan_workspace_bytes(plan), 0u);
    std::string text(10000, '\0');
    size_t needed = 0;
    ASSERT_EQ(foveal_plan_describe(plan, text.data(), text.size(), &needed), FOVEAL_OK);
    text.resize(needed - 1);
    for (const char* word : {"sm90", "tile", "grid", "shared", "registers", "workspace", "bound"}) {
        EXPECT_NE(text.find(word), std::string::npos) << word << " is missing in:\n" << text;
    }
    foveal_plan_destroy(plan);
}

}  // namespace
}  // namespace foveal_testing
