// The sm90 backend's results: the lists (contract 1.10), and very large tensors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/plan_text.hpp"
#include "tests/support/run_suite.hpp"

namespace foveal_testing {
namespace {

TEST_F(Gpu, CorrectnessSuite) { run_suite("correctness", kSm90); }

TEST_F(Gpu, CornerSuite) { run_suite("corner", kSm90); }

TEST_F(Gpu, GridSuite) { run_suite("grid", kSm90); }

void expect_right(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kSm90);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
    std::printf("  %s: %s\n", text.c_str(), result.verdict.summary().c_str());
}

// ---- 1.1: more than 2^31 elements. The sampled rows hold the first and the last of each.

TEST_F(Gpu, QueriesBeyond32BitIndices) { expect_right("b1 sq270000 sk1024 hq64 hk8 d128 bf16 causal lse"); }

TEST_F(Gpu, KeysBeyond32BitIndices) { expect_right("b20 sq64 sk131072 h8 d128 bf16 full lse"); }

TEST_F(Gpu, VarlenBeyond32BitIndices) {
    expect_right("varlen qlens=100000,3,170000 klens=1000,1024,700 hq64 hk8 d128 f16 causal");
}

TEST_F(Gpu, LayoutBhsdBeyond32BitIndices) { expect_right("b2 sq140000 sk512 hq64 hk8 d128 bf16 causal bhsd"); }

// A bias and a mask whose elements are read in groups, and some that are not: by their strides, or their ends.
TEST_F(Gpu, ScoreMatricesInGroupsAndNot) {
    for (const std::string shape : {"b2 sq70 sk200 hq4 hk2 d128", "b2 sq300 sk512 h3 d64", "b3 sq9 sk1000 hq8 hk1 d256",
                                    "b2 sq33 sk72 h2 d512", "b2 sq200 sk136 h2 d192 dv128 used_q=200,77 used_k=131,60",
                                    "b2 sq200 sk136 h2 d128 used_q=200,77 used_k=131,60", "b2 sq70 sk201 hq4 hk2 d128",
                                    "b1 sq70 sk204 hq4 hk2 d64"})
        for (const std::string type : {" bf16", " f16"})
            for (const std::string matrices :
                 {" bias=bh", " bias=1h lse", " bias_f32=b1 causal", " mask=bh", " mask=11 causal lse",
                  " bias=11 mask=b1 alibi softcap30", " bias=bh bias_inf left100 right50", " bias=bh mask=1h pad"})
                expect_right(shape + type + matrices);
}

std::string repeated(const std::string& lengths, int times) {
    std::string text = lengths;
    for (int i = 1; i < times; ++i) text += "," + lengths;
    return text;
}

// Several tiles a CTA, of which those at the sequences' ends have no rows for some warpgroups (step 10 of kernel.cuh).
TEST_F(Gpu, WarpgroupsWithoutRowsPassOverTiles) {
    for (const std::string shape :
         {"b9 sq700 sk700 hq16 hk4 d128", "b9 sq700 sk700 h16 d64", "b40 sq300 sk400 h16 d64",
          "b9 sq570 sk700 h16 d256", "b9 sq600 sk700 h8 d192 dv128", "b9 sq513 sk300 h8 d512"})
        for (const std::string option :
             {" full", " causal lse", " left400 right20", " causal softcap30", " causal alibi lse", " chunk256 causal"})
            expect_right(shape + " bf16" + option);
    // All tiles, and none.
    for (const std::string shape : {"b40 sq60 sk900 h16 d64", "b40 sq5 sk900 hq32 hk4 d128", "b40 sq100 sk900 h8 d256"})
        expect_right(shape + " f16 full lse");
    // Two in a row, and the first and the last of a CTA.
    const std::string lengths = repeated("600,20,700,1300,10,3,570,0,1", 9);
    for (const std::string tail : {"hq8 hk2 d128 bf16 full", "hq8 hk2 d64 bf16 causal lse", "h4 d256 f16 full"})
        expect_right("varlen qlens=" + lengths + " klens=" + repeated("600,900,700,1300,800,700,570,5,2000", 9) + " " +
                     tail);
}

// ---- Varlen batches of long tiles, which are dealt out by what the CTAs have computed (sm90/forward/balance.cuh). A
// tile that nobody computed, or two, would show: every element must have been written.

void expect_dealt_out(const std::string& text) {
    expect_plan(text, "dealt out");
    expect_right(text);
}

TEST_F(Gpu, VarlenTilesDealtOutByLoad) {
    const std::string lengths = "varlen qlens=4000,1,0,2500,3300,130,1024 klens=4100,2000,300,2500,1700,3000,1024 ";
    for (const std::string tail :
         {"hq32 hk8 d128 bf16 full lse", "hq32 hk8 d128 f16 causal", "h15 d64 bf16 full", "hq6 hk2 d128 bf16 full lse",
          "hq12 hk4 d256 bf16 causal", "h16 d64 bf16 full lse", "h4 d512 bf16 full", "hq8 hk2 d128 bf16 left1500 alibi",
          "hq8 hk2 d128 bf16 causal softcap30 used_q=4000,1,0,77,3300,0,1000 used_k=4100,9,0,2500,3,3000,1000"})
        expect_dealt_out(lengths + tail);
    // More sequences than a warp has lanes, empty ones at the end of one such window and at the beginning of the next.
    const std::string many = repeated("1700,300,1,4000,0,0,0,3000", 11);
    expect_dealt_out("varlen qlens=" + many + " klens=" + many + " hq4 hk1 d128 bf16 full");
    expect_dealt_out("varlen qlens=0,0," + many + ",0,0 klens=0,7," + many + ",900,0 h4 d64 f16 full lse");
}

// ---- 1.9

TEST_F(Gpu, AutoFollowsTheMemory) {
    const auto data = on_gpu("b2 s200 hq4 hk2 d128 bf16 causal");
    foveal_forward_args args = data->args();
    args.backend = FOVEAL_BACKEND_AUTO;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

TEST_F(Gpu, MisalignedPointersAreRefusedByName) {
    const auto data = on_gpu("b2 s200 hq4 hk2 d128 bf16 causal");
    for (foveal_tensor foveal_forward_args::*tensor :
         {&foveal_forward_args::q, &foveal_forward_args::k, &foveal_forward_args::v, &foveal_forward_args::out}) {
        foveal_forward_args args = data->args();
        (args.*tensor).data = static_cast<std::byte*>((args.*tensor).data) + 8;
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_UNSUPPORTED);
        EXPECT_NE(std::string(foveal_last_error()).find("16 bytes"), std::string::npos) << foveal_last_error();
    }
    data->synchronize();
    const OutputScan scan = data->scan(TensorId::kOut);
    EXPECT_EQ(scan.poison, scan.elements) << "a refused call wrote";
}

TEST_F(Gpu, AKeptPlanGivesTheSameBits) {
    for (const std::string text :
         {"b2 sq300 sk500 hq4 hk2 d128 bf16 causal lse", "varlen qlens=5,300 klens=70,200 h2 d64 f16 lse"}) {
        const std::vector<std::byte> expected = outputs_of(text);
        const auto data = on_gpu(text);
        foveal_plan* plan = nullptr;
        ASSERT_EQ(foveal_plan_create(&data->args(), 0, &plan), FOVEAL_OK) << foveal_last_error();
        EXPECT_EQ(foveal_plan_workspace_bytes(plan), 0u);
        EXPECT_EQ(foveal_plan_launch(plan, &data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
        foveal_plan_destroy(plan);
        EXPECT_EQ(outputs(*data), expected) << text;
    }
}

}  // namespace
}  // namespace foveal_testing
