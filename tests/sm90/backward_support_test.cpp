// What the sm90 backend computes gradients of, how it says what it does not, and the workspace that its plans ask for.
// No GPU is needed.
#include <gtest/gtest.h>

#include <string>

#include "foveal/foveal.h"
#include "tests/support/backward_case.hpp"
#include "tests/support/backward_data.hpp"

namespace foveal_testing {
namespace {

std::string refusal_of(const std::string& text) {
    foveal_forward_args forward;
    const foveal_backward_args args =
        backward_shape_args(parse_backward_case("backward " + text), FOVEAL_BACKEND_SM90, forward);
    const foveal_status status = foveal_backward_supports(&args);
    if (status == FOVEAL_OK) return "";
    EXPECT_EQ(status, FOVEAL_UNSUPPORTED) << text;
    return foveal_last_error();
}

TEST(BackwardSupport, WhatIsComputed) {
    for (const std::string form : {"b2 s130 hq4 hk2", "varlen qlens=5,130 klens=64,9 hq4 hk1",
                                   "b3 sq130 sk201 h2 used_q=130,1,77 used_k=201,0,130", "b2 sq0 sk70 h2"})
        for (const std::string rest :
             {" d128 bf16 causal", " d64 f16 left9 right3 dlse", " d8 bf16 sinks softcap3",
              " d96 dv40 bf16 chunk50 causal", " d256 f16 causal", " d192 dv128 bf16 sinks", " d512 bf16 left40",
              " d320 dv64 f16 sinks", " d64 bf16 alibi", " d256 bf16 softcap3 scale-1", " d512 f16 chunk9 causal alibi",
              " d128 f16 alibi_b causal softcap5", " d128 bf16 dropout0.1 alibi causal", " d256 f16 dropout0.5",
              " d512 bf16 dropout0.5 softcap3"})
            EXPECT_EQ(refusal_of(form + rest), "") << form << rest;
    EXPECT_EQ(refusal_of("b1 s64 h2 d256 bf16 mask=bh"), "");
    for (const std::string bias : {"bh", "b1", "1h", "11", "b11k", "1hq1", "1111"})
        EXPECT_EQ(refusal_of("b3 sq130 sk201 h2 d64 bf16 bias=" + bias), "") << bias;
}

TEST(BackwardSupport, WhatIsRefusedByName) {
    const struct {
        const char* text;
        const char* message;
    } cases[] = {
        {"b1 s64 h2 d64 f32", "q.dtype is f32"},
        {"b1 s64 h2 d520 bf16", "q's head dimension is 520"},
        {"b1 s64 h2 d64 dv576 bf16", "v's head dimension is 576"},
        {"b1 s64 h2 d68 bf16", "q's head dimension is 68"},
        {"b1 s64 h2 d64 bf16 qoff=3 causal", "query_offset is present"},
        {"varlen qlens=60,130 sk100 used_k=100,37 h2 d64 bf16", "cu_seqlens_k is absent"},
    };
    for (const auto& one : cases)
        EXPECT_NE(refusal_of(one.text).find(one.message), std::string::npos)
            << one.text << ": " << refusal_of(one.text);
}

TEST(BackwardSupport, SumsInF32AreTheCpus) {
    foveal_forward_args forward;
    const struct {
        foveal_tensor foveal_backward_args::*tensor;
        const char* name;
    } written[] = {
        {&foveal_backward_args::dq, "dq"}, {&foveal_backward_args::dk, "dk"}, {&foveal_backward_args::dv, "dv"}};
    for (const auto& [tensor, name] : written) {
        foveal_backward_args args =
            backward_shape_args(parse_backward_case("backward b1 s64 h2 d64 bf16"), FOVEAL_BACKEND_SM90, forward);
        (args.*tensor).dtype = FOVEAL_F32;
        EXPECT_EQ(foveal_backward_supports(&args), FOVEAL_UNSUPPORTED);
        EXPECT_NE(
            std::string(foveal_last_error()).find(std::string(name) + ".dtype is f32; the sm90 backend writes q's"),
            std::string::npos)
            << foveal_last_error();
        (args.*tensor).rank = 0;  // what is not asked has no type
        EXPECT_EQ(foveal_backward_supports(&args), FOVEAL_OK) << foveal_last_error();
    }
}

std::string backward_plan_of(const std::string& text) {
    foveal_forward_args forward;
    const foveal_backward_args args =
        backward_shape_args(parse_backward_case("backward " + text), FOVEAL_BACKEND_SM90, forward);
    foveal_plan* plan = nullptr;
    EXPECT_EQ(foveal_backward_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    char description[4096];
    EXPECT_EQ(foveal_plan_describe(plan, description, sizeof description, nullptr), FOVEAL_OK);
    foveal_plan_destroy(plan);
    return description;
}

TEST(BackwardSupport, TheTileFollowsFromBothHeadDimensions) {
    const struct {
        const char* text;
        const char* tile;
    } cases[] = {
        {"d64 bf16", "d up to 64, dq's sums"},
        {"d8 dv72 bf16", "d up to 128, dq's sums"},
        {"d128 f16 softcap3", "d up to 128, with score options, dq's sums"},
        {"d192 dv128 bf16 causal", "d up to 192, d_v up to 128, dk and dv apart from dq"},
        {"d136 dv8 f16 left3", "d up to 192, d_v up to 128, dk and dv apart from dq"},
        {"d192 dv128 bf16 dropout0.1", "d up to 192, d_v up to 128, with dropout, dk and dv apart from dq"},
        {"d192 dv136 bf16", "d up to 256, dk and dv apart from dq"},
        {"d128 dv136 bf16", "d up to 256, dk and dv apart from dq"},
        {"d200 dv128 bf16", "d up to 256, dk and dv apart from dq"},
        {"d192 dv128 bf16 softcap3", "d up to 512, with score options, dk, dv and dq apart"},
        {"d264 dv8 bf16", "d up to 512, dk, dv and dq apart"},
    };
    for (const auto& [text, tile] : cases)
        EXPECT_NE(backward_plan_of(std::string("b2 s300 h2 ") + text).find(tile), std::string::npos)
            << text << ":\n"
            << backward_plan_of(std::string("b2 s300 h2 ") + text);
}

size_t workspace_bytes(const std::string& text) {
    foveal_forward_args forward;
    const foveal_backward_args args =
        backward_shape_args(parse_backward_case("backward " + text), FOVEAL_BACKEND_SM90, forward);
    foveal_plan* plan = nullptr;
    EXPECT_EQ(foveal_backward_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    const size_t bytes = foveal_plan_workspace_bytes(plan);
    foveal_plan_destroy(plan);
    return bytes;
}

// dQ in fp32 and two values for each row, and a little for tiles of rows and of keys.
TEST(BackwardSupport, TheWorkspaceFollowsFromTheShapes) {
    const auto rows = [](double b, double s, double h, double d) { return 4 * b * s * h * (d + 2); };
    const auto bytes_of = [](const std::string& text) { return static_cast<double>(workspace_bytes(text)); };
    EXPECT_LE(bytes_of("b4 s4096 h16 d128 bf16 causal"), 1.002 * rows(4, 4096, 16, 128));
    EXPECT_LE(bytes_of("b1 s1024 hq32 hk8 d64 bf16"), 1.003 * rows(1, 1024, 32, 64));
    EXPECT_LE(bytes_of("b4 s4096 h16 d192 dv128 bf16 causal"), 0.02 * rows(4, 4096, 16, 192));
    EXPECT_LE(bytes_of("b4 s4096 h16 d256 bf16 causal"), 0.02 * rows(4, 4096, 16, 256));
    // What dbias and dalibi_slopes are summed in.
    const auto more = [&](const std::string& option) {
        return bytes_of("b4 s4096 h16 d128 bf16 causal " + option) - bytes_of("b4 s4096 h16 d128 bf16 causal");
    };
    EXPECT_EQ(more("bias=bh"), 0);
    EXPECT_EQ(more("bias=11"), 0);
    EXPECT_EQ(more("bias=b11k"), 4.0 * 2 * 4 * 4096);
    EXPECT_EQ(more("alibi"), 4.0 * 4 * 64 * 16);
    EXPECT_EQ(workspace_bytes("b4 s4096 h16 d128 bf16 causal"), workspace_bytes("b4 s4096 h16 d128 f16 left7 right9"));
}

}  // namespace
}  // namespace foveal_testing
