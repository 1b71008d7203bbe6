// What is refused, and how that is said (contract 1.9); refusals argument by argument are tried from C in c_abi_test.c.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.9 Refuse, never ignore

TEST(Contract_1_9, MessagesBelongToTheirThread) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.window_left = -5;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    const std::string mine = foveal_last_error();
    EXPECT_NE(mine.find("window_left"), std::string::npos) << mine;
    std::string at_start = "?", theirs;
    std::thread([&] {
        at_start = foveal_last_error();
        foveal_forward_args other = data->args();
        other.alignment = 9;
        (void)foveal_forward(&other, nullptr);
        theirs = foveal_last_error();
    }).join();
    EXPECT_EQ(at_start, "");
    EXPECT_NE(theirs.find("alignment"), std::string::npos) << theirs;
    EXPECT_EQ(foveal_last_error(), mine);
}

TEST(Contract_1_9, TheMessageOutlivesASuccess) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.window_left = -5;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    EXPECT_NE(std::string(foveal_last_error()).find("window_left"), std::string::npos);
}

class ScopedEnvironment {
   public:
    ScopedEnvironment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
    ScopedEnvironment(const ScopedEnvironment&) = delete;
    ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;
    ~ScopedEnvironment() { unsetenv(name_); }

   private:
    const char* name_;
};

TEST(Contract_1_9, TheEnvironmentForcesABackend) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.backend = FOVEAL_BACKEND_AUTO;
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "cpu");
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    }
    data->poison_outputs();
    const OutputScan before = data->scan(TensorId::kOut);
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "sm90");  // d = 8 in f32 on host memory: it cannot
        EXPECT_NE(foveal_forward(&args, nullptr), FOVEAL_OK);
        EXPECT_NE(std::string(foveal_last_error()).find("FOVEAL_BACKEND is \"sm90\""), std::string::npos)
            << foveal_last_error();
        foveal_forward_args named = args;
        named.backend = FOVEAL_BACKEND_SM90;
        EXPECT_NE(foveal_forward(&named, nullptr), FOVEAL_OK);
        EXPECT_EQ(std::string(foveal_last_error()).find("FOVEAL_BACKEND"), std::string::npos) << foveal_last_error();
        named.backend = FOVEAL_BACKEND_AUTO;
        named.softcap = -1;
        EXPECT_EQ(foveal_forward(&named, nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_EQ(std::string(foveal_last_error()).find("FOVEAL_BACKEND"), std::string::npos) << foveal_last_error();
    }
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "tpu");
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find("FOVEAL_BACKEND is \"tpu\""), std::string::npos)
            << foveal_last_error();
    }
    EXPECT_EQ(data->scan(TensorId::kOut), before) << "a refused call wrote";
}

TEST(Contract_1_9, AMergeNamesTheEnvironmentThatChoseItsBackend) {
    float values[4] = {1, 2, 3, 4}, sums[1] = {0}, result[4] = {};
    const foveal_tensor part = {values, FOVEAL_F32, 4, {1, 1, 1, 4}, {4, 4, 4, 1}};
    const foveal_tensor part_lse = {sums, FOVEAL_F32, 3, {1, 1, 1, 0}, {1, 1, 1, 0}};
    foveal_merge_args args;
    foveal_merge_args_init(&args);
    args.parts = 1;
    args.outs = &part;
    args.lses = &part_lse;
    args.out = part;
    args.out.data = result;
    int no_stream = 0;  // which the cpu backend refuses
    const ScopedEnvironment forced("FOVEAL_BACKEND", "cpu");
    EXPECT_EQ(foveal_merge(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_merge(&args, &no_stream), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("FOVEAL_BACKEND is \"cpu\""), std::string::npos)
        << foveal_last_error();
    args.backend = FOVEAL_BACKEND_CPU;
    EXPECT_EQ(foveal_merge(&args, &no_stream), FOVEAL_INVALID_ARGUMENT);
    EXPECT_EQ(std::string(foveal_last_error()).find("FOVEAL_BACKEND"), std::string::npos) << foveal_last_error();
}

TEST(Contract_1_9, SupportsAnswersWithoutPointersOrDevice) {
    foveal_forward_args args = shape_args(parse_case("b2 s1000 hq4 hk2 d128 bf16 causal"), kCpu);
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
    args.backend = FOVEAL_BACKEND_AUTO;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
    args.backend = FOVEAL_BACKEND_SM90;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
}

// What sm90 refuses it names, on a machine without a GPU and in a build without CUDA too.
TEST(Contract_1_9, Sm90NamesWhatItRefuses) {
    const auto expect_refusal = [](const foveal_forward_args& args, const std::vector<std::string>& words) {
        EXPECT_EQ(foveal_supports(&args), FOVEAL_UNSUPPORTED) << words[0];
        for (const std::string& word : words) {
            EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
                << word << " in: " << foveal_last_error();
        }
    };
    const auto shape = [](const std::string& text) { return shape_args(parse_case(text), FOVEAL_BACKEND_SM90); };
    expect_refusal(shape("s64 h2 d128 f32"), {"f32"});
    expect_refusal(shape("s64 h2 d7 bf16"), {"7"});
    expect_refusal(shape("s64 h2 d128 dv36 bf16"), {"36"});
    expect_refusal(shape("s64 h2 d520 bf16"), {"520"});
    expect_refusal(shape("s64 h2 d128 dv520 bf16"), {"520"});
    foveal_forward_args odd = shape("s64 h2 d128 bf16");
    odd.k.stride[1] += 1;
    odd.k.stride[0] += 64;
    expect_refusal(odd, {"k's row stride", "257"});
}

}  // namespace
}  // namespace foveal_testing
