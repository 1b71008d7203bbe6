// foveal check and foveal bench.
#include <string>

#include "tests/tool/tool_fixture.hpp"

namespace foveal_testing {
namespace {

void check_passes(const std::string& backend, const std::string& json_path) {
    const Result words = foveal("check b2 sq113 sk203 hq4 hk2 d128 bf16 causal lse" + on(backend));
    EXPECT_STATUS(words, 0);
    EXPECT_SAYS(words, "1 passed, 0 failed, 0 unsupported");
    const Result quoted = foveal("check \"s40 h2 bf16\" 'varlen qlens=3,0 klens=5,2 h1 f16' s7 h3 --jobs 2 --json " +
                                 json_path + on(backend));
    EXPECT_STATUS(quoted, 0);
    EXPECT_SAYS(quoted, "3 passed, 0 failed, 0 unsupported");
}

TEST_F(Cpu, CheckPasses) {
    check_passes(kBackend, file("check.json"));
    const nlohmann::json summary = json("check.json");
    EXPECT_EQ(summary["passed"], 3);
    EXPECT_EQ(summary["failed"], 0);
    EXPECT_EQ(summary["backend"], "cpu");
    EXPECT_TRUE(summary["commit"].is_string());
}

TEST_F(Sm90, CheckPasses) {
    check_passes(kBackend, file("check.json"));
    EXPECT_EQ(json("check.json")["passed"], 3);
    EXPECT_TRUE(json("check.json")["gpu"].is_string());
}

TEST_F(Sm90, UnsupportedIsNoPass) {
    const Result result = foveal("check s64 h1 d100 bf16 --backend sm90");
    EXPECT_STATUS(result, 1);
    EXPECT_SAYS(result, "0 passed, 0 failed, 1 unsupported");
    EXPECT_SAYS(result, "nothing was checked");
    const Result bench =
        foveal("bench 's64 h1 d100 bf16' 's64 h1 d64 bf16' --backend sm90 --json " + file("bench.json"));
    EXPECT_STATUS(bench, 1);
    EXPECT_SAYS(bench, "1 of 2 cases failed");
    EXPECT_SAYS(bench, "is not written");
}

// A library that computes something else must fail the check, and must not be timed.
TEST_F(Cpu, WrongResultsAreFound) {
    const std::string preload = preloaded("libbroken_library.so");
    for (const std::string how : {"wrong_value", "nan", "nothing_written", "out_of_bounds", "wrong_lse"}) {
        const std::string environment = preload + " FOVEAL_TEST_BREAK=" + how;
        const Result check =
            foveal("check b1 s9 h2 d16 f32 causal lse --backend cpu --json " + file(how + ".json"), environment);
        EXPECT_STATUS(check, 1);
        EXPECT_SAYS(check, "FAILED       b1 s9 h2 d16 f32 causal lse");
        EXPECT_SAYS(check, "foveal check --backend cpu \"b1 s9 h2 d16 f32 causal lse\"");
        EXPECT_SAYS(check, "0 passed, 1 failed");
        EXPECT_EQ(json(how + ".json")["failures"][0]["case"], "b1 s9 h2 d16 f32 causal lse");
        const Result bench =
            foveal("bench b1 s9 h2 d16 f32 causal lse --backend cpu --json " + file(how + "_bench.json"), environment);
        EXPECT_STATUS(bench, 1);
        EXPECT_SAYS(bench, "wrong result, not timed");
        EXPECT_SAYS(bench, "is not written");
    }
    const Result sound =
        foveal("check b1 s9 h2 d16 f32 causal lse --backend cpu", preload + " FOVEAL_TEST_BREAK=not_at_all");
    EXPECT_STATUS(sound, 0);
}

TEST_F(Cpu, UnwritableJsonIsFoundBeforeTheWork) {
    for (const std::string command : {"check", "bench"}) {
        const Result result = foveal(command + " s5 h1 --backend cpu --json " + file("no/such/directory.json"));
        EXPECT_STATUS(result, 1);
        EXPECT_SAYS(result, "cannot write");
        EXPECT_FALSE(result.says("passed")) << result.output;
    }
}

// The form of a results file: CONTRIBUTING.md, "Performance".
void expect_results_file(const nlohmann::json& results, size_t rows, int rounds) {
    for (const char* key : {"suite", "gpu", "driver", "cuda", "commit", "date", "rounds", "rows"})
        EXPECT_TRUE(results.contains(key)) << key;
    EXPECT_EQ(results["rounds"], rounds);
    ASSERT_EQ(results["rows"].size(), rows);
    for (const nlohmann::json& row : results["rows"]) {
        EXPECT_TRUE(row["case"].is_string());
        EXPECT_GT(row["flops"], 0);
        EXPECT_GT(row["bytes"], 0);
        EXPECT_GT(row["us"]["foveal"], 0);
        EXPECT_GE(row["spread_pct"]["foveal"], 0);
        EXPECT_TRUE(row["max_err"].is_number());
        EXPECT_TRUE(row["ref_err"].is_number());
        EXPECT_TRUE(row.contains("sm_mhz"));
        EXPECT_TRUE(row.contains("watts"));
    }
}

TEST_F(Cpu, BenchWritesResultsFile) {
    const Result bench = foveal("bench 'b1 s64 h2 d64 f32 causal' 'b1 s32 h2 bf16' --backend cpu --rounds 3 --json " +
                                file("bench.json"));
    EXPECT_STATUS(bench, 0);
    EXPECT_SAYS(bench, "GFLOP/s");
    const nlohmann::json results = json("bench.json");
    expect_results_file(results, 2, 3);
    EXPECT_TRUE(results["gpu"].is_null());
    const nlohmann::json& row = results["rows"][0];
    EXPECT_EQ(row["case"], "b1 s64 h2 d64 f32 causal");
    EXPECT_EQ(row["flops"], 4.0 * 64 * 2 * (64 * 65 / 2));
    EXPECT_EQ(row["bytes"], 4.0 * 4 * 64 * 2 * 64);
    EXPECT_TRUE(row["sm_mhz"].is_null());
}

TEST_F(Sm90, BenchWritesResultsFile) {
    const Result bench =
        foveal("bench 'b4 s1024 h8 causal' 'b1 s64 h2 d64 f16' --backend sm90 --json " + file("bench.json"));
    EXPECT_STATUS(bench, 0);
    EXPECT_SAYS(bench, "TFLOP/s");
    const nlohmann::json results = json("bench.json");
    expect_results_file(results, 2, 20);
    EXPECT_TRUE(results["gpu"].is_string());
    for (const nlohmann::json& row : results["rows"]) {
        EXPECT_GT(row["host_us"], 0);
        EXPECT_GT(row["sm_mhz"], 100);
        EXPECT_GT(row["watts"], 10);
    }
}

void bench_merges(const std::string& backend, const std::string& json_path) {
    const Result bench = foveal("bench 'merge parts3 b2 s64 h4 d64 bf16 lse' merge s5 h1 f32 --rounds 3 --json " +
                                json_path + on(backend));
    EXPECT_STATUS(bench, 0);
    EXPECT_SAYS(bench, "GB/s");
    EXPECT_SAYS(bench, "\nmerge parts2 b1 s5 h1 d128 f32 ");
}

void expect_merge_file(const nlohmann::json& results) {
    expect_results_file(results, 2, 3);
    const nlohmann::json& row = results["rows"][0];
    EXPECT_EQ(row["case"], "merge parts3 b2 s64 h4 d64 bf16 lse");
    EXPECT_EQ(row["bytes"], 2 * 64 * 4 * (3 * (64 * 2 + 4) + 64 * 2 + 4));
    EXPECT_GT(row["ref_err"], 0);
}

TEST_F(Cpu, BenchTimesMerges) {
    bench_merges(kBackend, file("merge.json"));
    expect_merge_file(json("merge.json"));
}

TEST_F(Sm90, BenchTimesMerges) {
    bench_merges(kBackend, file("merge.json"));
    expect_merge_file(json("merge.json"));
}

TEST_F(Cpu, WrongMergesAreNotTimed) {
    const std::string preload = preloaded("libbroken_library.so");
    for (const std::string how : {"wrong_value", "nan", "nothing_written", "out_of_bounds", "wrong_lse"}) {
        const Result bench = foveal("bench merge s9 h2 d16 f32 lse --backend cpu --json " + file("wrong.json"),
                                    preload + " FOVEAL_TEST_BREAK=" + how);
        EXPECT_STATUS(bench, 1);
        EXPECT_SAYS(bench, "wrong result, not timed");
        EXPECT_SAYS(bench, "foveal bench --backend cpu \"merge parts2 b1 s9 h2 d16 f32 lse\"");
    }
    EXPECT_STATUS(foveal("bench merge s9 h2 d16 f32 lse --backend cpu --rounds 2", preload), 0);
}

TEST_F(Cpu, BenchRefusesTheSuitesOfAnotherBackend) {
    const Result seed = foveal("bench --suite seed --backend cpu");
    EXPECT_STATUS(seed, 2);
    EXPECT_SAYS(seed, "the suite seed is not for this backend");
    EXPECT_SAYS(seed, "seed_cpu");
}

}  // namespace
}  // namespace foveal_testing
