// Attention over two GPUs is that of one (contract 1.15): a thread a GPU, over NCCL. Skipped where there is one GPU, or
// no libnccl.so.2 in the loader's path (PyTorch's wheel has one: site-packages/nvidia/nccl/lib).
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/parallel/drawn.hpp"
#include "tests/parallel/gpu_ranks.hpp"
#include "tests/parallel/ranks.hpp"

namespace foveal_testing {
namespace {

using Seconds = std::chrono::duration<double>;
constexpr int32_t kRanks = 2;
constexpr foveal_parallel_method kMethods[] = {FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_ALL_GATHER,
                                               FOVEAL_PARALLEL_ULYSSES};

class TwoGpus : public ::testing::Test {
   protected:
    void SetUp() override {
        int count = 0;
        if (cudaGetDeviceCount(&count) != cudaSuccess || count < kRanks) GTEST_SKIP() << "SKIPPED: no two sm90 devices";
        try {
            Nccl::loaded();
        } catch (const std::runtime_error& error) {
            GTEST_SKIP() << "SKIPPED: no two sm90 devices with NCCL: " << error.what();
        }
    }

    // Communicators over these of NCCL, which live on.
    static void over(Ranks& ranks, const std::vector<foveal_nccl_comm_t>& comms, double timeout_seconds = 10) {
        ranks.device = gpu_of_rank;
        ranks.connect = [&comms, timeout_seconds](foveal_communicator** communicators) {
            for (size_t i = 0; i < comms.size(); ++i)
                ASSERT_EQ(foveal_communicator_create_nccl(comms[i], nullptr, timeout_seconds, &communicators[i]),
                          FOVEAL_OK)
                    << foveal_last_error();
        };
    }
    // Those of all tests whose ranks do not fail.
    static std::vector<foveal_nccl_comm_t>& lasting() {
        static std::vector<foveal_nccl_comm_t> comms = Nccl::loaded().blocking(kRanks);
        return comms;
    }
    // A rank that has failed, or was refused, has aborted them, and NCCL has freed what it aborts.
    static CheckResult check(const std::string& text,
                             const std::function<Ranks(const foveal_forward_args&)>& ranks_of) {
        CheckResult result = check_over_ranks(text, ranks_of);
        if (!result.passed()) lasting() = Nccl::loaded().blocking(kRanks);
        return result;
    }
    static Ranks placed_on(const foveal_forward_args& whole, foveal_placement placement,
                           foveal_parallel_method method) {
        const Lengths lengths = lengths_of(whole);
        Ranks ranks{.spans_q = placed(placement, lengths.q, kRanks),
                    .spans_k = placed(placement, lengths.k, kRanks),
                    .count = kRanks,
                    .method = method};
        over(ranks, lasting());
        return ranks;
    }
};

// The CPU's grid, as far as sm90 takes it.
TEST_F(TwoGpus, Grid) {
    int checked = 0, refused = 0;
    for (uint32_t seed = 1; checked < 150; ++seed) {
        const Drawn drawn = draw_case(seed);
        if (drawn.ranks != kRanks || drawn.text.find(" f32") != std::string::npos) continue;
        const CheckResult result = check(drawn.text, [&](const foveal_forward_args& whole) {
            Ranks ranks = drawn.on(whole);
            over(ranks, lasting());
            return ranks;
        });
        if (!result.passed() && result.message.find("rank 0: unsupported") != std::string::npos &&
            result.message.find("rank 1: unsupported") != std::string::npos) {
            std::printf("refused: %s\n", result.message.c_str());
            ++refused;
            continue;
        }
        ++checked;
        EXPECT_TRUE(result.passed()) << drawn.described() << "\n" << result.message;
    }
    std::printf("%d cases checked, %d refused by name\n", checked, refused);
}

class TwoGpusShapes : public TwoGpus, public ::testing::WithParamInterface<const char*> {};

INSTANTIATE_TEST_SUITE_P(Of, TwoGpusShapes,
                         ::testing::Values("b1 s4096 hq8 hk2 d128 ", "b2 s1111 hq8 hk8 d64 ",
                                           "varlen qlens=1500,3,700,0,1900 klens=1500,3,700,0,1900 hq8 hk2 d128 ",
                                           "b1 s1500 hq4 hk2 d192 dv128 ", "b1 s2048 hq4 hk2 d256 "));

TEST_P(TwoGpusShapes, EveryMaskAndMethod) {
    const char* const masks[] = {"full lse",
                                 "causal lse",
                                 "left1024 right0 sinks",
                                 "chunk512 causal lse",
                                 "causal softcap30 lse",
                                 "left300 right200",
                                 "causal sd10 sinks lse"};
    int number = 0;
    for (const char* const mask : masks) {
        for (const auto method : kMethods) {
            const auto placement = ++number % 2 == 0 ? FOVEAL_CONTIGUOUS : FOVEAL_ZIGZAG;
            const std::string text = std::string(GetParam()) + mask + (number % 3 == 0 ? " f16" : " bf16");
            const CheckResult result =
                check(text, [&](const foveal_forward_args& whole) { return placed_on(whole, placement, method); });
            EXPECT_TRUE(result.passed()) << "method " << method << ", placement " << placement << ": "
                                         << result.message;
        }
    }
}

TEST_F(TwoGpus, TheSameBitsInEveryRun) {
    for (const char* const text : {"b1 s4096 hq8 hk2 d128 bf16 causal lse", "b1 s8192 hq4 hk2 d64 f16 left700 lse"}) {
        const auto data = make_case_data(parse_case(text), FOVEAL_BACKEND_CPU);
        for (const auto method : kMethods) {
            Ranks ranks = placed_on(data->args(), FOVEAL_ZIGZAG, method);
            ranks.calls = 100;
            for (const RankResult& result : run_ranks(data->args(), ranks)) EXPECT_EQ(result.message, "") << text;
        }
    }
}

// ---- ranks that fail

TEST_F(TwoGpus, ARankThatDoesNotComeIsATimeout) {
    const auto data = make_case_data(parse_case("b1 s2048 hq4 hk2 d128 bf16 causal"), FOVEAL_BACKEND_CPU);
    for (const bool in_background : {false, true}) {
        const std::vector<foveal_nccl_comm_t> comms =
            in_background ? Nccl::loaded().in_background(kRanks) : Nccl::loaded().blocking(kRanks);
        Ranks ranks = placed_on(data->args(), FOVEAL_ZIGZAG, FOVEAL_PARALLEL_RING);
        over(ranks, comms, 2);
        // A blocking ncclGroupEnd() cannot be timed before the ranks have met once.
        int calls_of_last = 0;
        ranks.before_call = [&](int32_t rank, foveal_parallel_args&) {
            return rank == 0 || (!in_background && calls_of_last++ == 0);
        };
        const auto begin = std::chrono::steady_clock::now();
        const std::vector<RankResult> results = run_ranks(data->args(), ranks);
        const double seconds = Seconds(std::chrono::steady_clock::now() - begin).count();
        EXPECT_NE(results[0].status, FOVEAL_OK);
        EXPECT_NE(results[0].message.find("has not ended within 2"), std::string::npos) << results[0].message;
        EXPECT_LT(seconds, 20);
        std::printf("a rank that does not come, %s: %.1f s: %s\n", in_background ? "in the background" : "blocking",
                    seconds, results[0].message.c_str());
    }
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(TwoGpus, ARankThatFailsMakesTheOtherFail) {
    const auto data = make_case_data(parse_case("b1 s2048 hq4 hk2 d128 bf16 causal"), FOVEAL_BACKEND_CPU);
    for (const auto method : kMethods) {
        const std::vector<foveal_nccl_comm_t> comms = Nccl::loaded().blocking(kRanks);
        Ranks ranks = placed_on(data->args(), FOVEAL_ZIGZAG, method);
        over(ranks, comms, 2);
        int calls_of_last = 0;
        ranks.before_call = [&](int32_t rank, foveal_parallel_args& args) {
            if (rank == 1 && calls_of_last++ == 1) args.workspace_bytes = 1;
            return true;
        };
        const std::vector<RankResult> results = run_ranks(data->args(), ranks);
        EXPECT_NE(results[1].message.find("workspace_bytes is 1"), std::string::npos) << results[1].message;
        EXPECT_NE(results[0].status, FOVEAL_OK);
        std::printf("a rank that fails: the other says: %s\n", results[0].message.c_str());
    }
}

}  // namespace
}  // namespace foveal_testing
