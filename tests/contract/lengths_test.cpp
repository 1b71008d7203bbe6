// Sequence offsets and used lengths, which the CPU backend checks and a GPU trusts: contract 1.1.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/case_data.hpp"

namespace foveal_testing {
namespace {

constexpr foveal_backend kCpu = FOVEAL_BACKEND_CPU;

struct Wrong {
    std::vector<int32_t> values;
    std::vector<const char*> words;  // of the message, behind the argument's name
};

using Slot = foveal_tensor foveal_forward_args::*;

// Whether called directly or of a kept plan: refused by name, and nothing written.
void expect_refused(const Case& c, Slot slot, const std::string& name, const Wrong& wrong) {
    const auto data = make_case_data(c, kCpu);
    const foveal_forward_args& args = data->args();
    std::copy(wrong.values.begin(), wrong.values.end(), static_cast<int32_t*>((args.*slot).data));
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    for (const bool planned : {false, true}) {
        EXPECT_EQ(planned ? foveal_plan_launch(plan, &args, nullptr) : foveal_forward(&args, nullptr),
                  FOVEAL_INVALID_ARGUMENT);
        const std::string message = foveal_last_error();
        EXPECT_EQ(message.find(name), 0u) << message;
        for (const char* word : wrong.words) EXPECT_NE(message.find(word), std::string::npos) << message;
    }
    foveal_plan_destroy(plan);
    for (const TensorId id : {TensorId::kOut, TensorId::kLse})
        EXPECT_EQ(data->scan(id).poison, data->scan(id).elements) << "a refused call wrote";
}

TEST(Contract_1_1, OffsetsAscendFromZeroToTotal) {
    const Wrong kWrong[] = {
        {{1, 4, 9}, {"[0] is 1", "must be 0"}},          // begins behind the first row
        {{-1, 4, 9}, {"[0] is -1", "must be 0"}},        // or before it
        {{0, 4, 8}, {"[2] is 8", "shape[0], 9"}},        // ends before the last row
        {{0, 4, 10}, {"[2] is 10", "[4, 9]"}},           // or behind it
        {{0, 10, 9}, {"[1] is 10", "[0, 9]"}},           // leaves the tensor between
        {{0, -1, 9}, {"[1] is -1", "[0, 9]"}},           // on either side
        {{0, 5, 4}, {"[2] is 4", "[5, 9]"}},             // descends
        {{0, 0, 0}, {"[2] is 0", "shape[0], 9"}},        // leaves all rows out
        {{0, INT32_MIN, 9}, {"[1] is -2147483648"}},     //
        {{INT32_MAX, INT32_MAX, 9}, {"[0] is 2147483"}}  //
    };
    for (const std::string type : {"f32", "bf16", "f16"}) {
        const Case c = parse_case("varlen qlens=4,5 klens=4,5 hq4 hk2 d8 lse " + type);
        for (const Wrong& wrong : kWrong) {
            expect_refused(c, &foveal_forward_args::cu_seqlens_q, "cu_seqlens_q", wrong);
            expect_refused(c, &foveal_forward_args::cu_seqlens_k, "cu_seqlens_k", wrong);
        }
    }
}

TEST(Contract_1_1, OffsetsOfNoSequence) {
    const Case c = parse_case("varlen qlens= klens= h2 d8 f32 lse");
    expect_refused(c, &foveal_forward_args::cu_seqlens_q, "cu_seqlens_q", {{3}, {"[0] is 3", "must be 0"}});
    const auto data = make_case_data(c, kCpu);
    EXPECT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    // Rows that belong to none.
    const auto with_rows = make_case_data(parse_case("varlen qlens=4 klens=4 h2 d8 f32 lse"), kCpu);
    foveal_forward_args args = with_rows->args();
    args.cu_seqlens_q.shape[0] = args.cu_seqlens_k.shape[0] = 1;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("cu_seqlens_q[0] is 0"), std::string::npos) << foveal_last_error();
}

TEST(Contract_1_1, UsedLengthsLieWithinTheirSequence) {
    for (const std::string form : {"b2 sq5 sk5", "varlen qlens=9,5 klens=9,5"}) {
        const Case c = parse_case(form + " h2 d8 f32 lse used_q=5,5 used_k=5,5");
        for (const Wrong& wrong : {Wrong{{0, 6}, {"[1] is 6", "[0, 5]"}},
                                   {{-1, 5}, {"[0] is -1", "[0, "}},
                                   {{5, INT32_MAX}, {"[1] is 2147483647", "[0, 5]"}}}) {
            expect_refused(c, &foveal_forward_args::seqused_q, "seqused_q", wrong);
            expect_refused(c, &foveal_forward_args::seqused_k, "seqused_k", wrong);
        }
    }
}

}  // namespace
}  // namespace foveal_testing
