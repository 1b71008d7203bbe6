// The sm90 backend's results: the lists (contract 1.10), isolation (1.6), repeatability (1.7), very large tensors.
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

// A bias alone has kernels of its own, if it is aligned to 16 bytes; else the general ones take it, as they do beside a
// mask.
TEST_F(Gpu, ABiasThatIsNotAligned) {
    for (const std::string shape :
         {"b2 sq70 sk200 hq4 hk2 d128 bf16", "b2 sq300 sk512 h3 d64 f16", "b3 sq9 sk1000 hq8 hk1 d256 bf16"}) {
        const auto masked = on_gpu(shape + " lse bias=bh mask=11"), moved = on_gpu(shape + " lse bias=bh");
        const foveal_tensor &mask = masked->args().mask, &bias = moved->args().bias;
        require_cuda(cudaMemset(mask.data, 1, static_cast<size_t>(mask.shape[2] * mask.stride[2])), "cudaMemset");
        run(*masked);
        const auto bytes = static_cast<size_t>(bias.shape[0] * bias.stride[0] * 2);
        const DeviceBuffer copy(bytes + 2);
        foveal_forward_args args = moved->args();
        args.bias.data = copy.as<std::byte>() + 2;
        require_cuda(cudaMemcpy(args.bias.data, bias.data, bytes, cudaMemcpyDeviceToDevice), "cudaMemcpy");
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
        EXPECT_EQ(outputs(*moved), outputs(*masked)) << shape;
    }
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

// ---- 1.6 Isolation

struct RowRange {
    int64_t first, last;
};

// All bytes of the rows outside [keep.first, keep.last) of a packed tensor become `byte`.
void ruin_neighbours(const foveal_tensor& tensor, RowRange keep, int byte) {
    const int64_t row_bytes = tensor.stride[0] * 2;
    auto* data = static_cast<std::byte*>(tensor.data);
    require_cuda(cudaMemset(data, byte, static_cast<size_t>(keep.first * row_bytes)), "cudaMemset");
    require_cuda(
        cudaMemset(data + keep.last * row_bytes, byte, static_cast<size_t>((tensor.shape[0] - keep.last) * row_bytes)),
        "cudaMemset");
}

std::vector<float> rows_of(CaseData& data, TensorId id, int64_t sequence, int64_t head) {
    const Case& c = data.the_case();
    std::vector<float> rows(static_cast<size_t>(c.used_q(sequence) * (id == TensorId::kLse ? 1 : c.head_dim_v)));
    data.read(id, sequence, head, 0, c.used_q(sequence), rows.data());
    return rows;
}

void expect_same_sequence(CaseData& a, int64_t sequence_a, CaseData& b, int64_t sequence_b) {
    a.synchronize();
    b.synchronize();
    for (int64_t head = 0; head < a.the_case().heads_q; ++head) {
        for (const TensorId id : {TensorId::kOut, TensorId::kLse}) {
            if (id == TensorId::kLse && !a.the_case().lse) continue;
            const std::vector<float> of_a = rows_of(a, id, sequence_a, head), of_b = rows_of(b, id, sequence_b, head);
            ASSERT_EQ(of_a.size(), of_b.size());
            EXPECT_EQ(std::memcmp(of_a.data(), of_b.data(), of_a.size() * sizeof(float)), 0)
                << tensor_name(id) << " head " << head << " of " << to_text(b.the_case());
        }
    }
}

// Bytes of NaN, of large numbers (3 or 48, 203 or 1.5e16 in f16 or bf16), and in bf16 of some whose products are
// infinite: NaN alone passes none of the limits by which a warp decides for all its rows.
TEST_F(Gpu, NeighboursOfAVarlenSequenceNeverMatter) {
    for (const std::string tail :
         {" hq4 hk2 d128 bf16 lse", " hq4 hk2 d128 bf16 causal lse", " hq4 hk2 d64 f16 causal lse", " h3 d64 bf16 lse",
          " h2 d256 bf16 causal", " h2 d128 bf16 causal", " h2 d64 bf16 softcap30",
          " hq4 hk2 d128 bf16 causal softcap30", " h2 d128 f16 softcap30 alibi", " h2 d512 bf16 softcap30"}) {
        for (const int64_t middle : {1, 63, 64, 70, 127, 128, 130, 257}) {
            const std::string length = std::to_string(middle);
            const std::string text = "varlen qlens=33," + length + ",9 klens=65," + length + ",130" + tail;
            const auto clean = on_gpu(text);
            run(*clean);
            for (const int byte : {0xFF, 0x42, 0x5A, 0x7F}) {
                const auto ruined = on_gpu(text);
                ruin_neighbours(ruined->args().q, {33, 33 + middle}, byte);
                ruin_neighbours(ruined->args().k, {65, 65 + middle}, byte);
                ruin_neighbours(ruined->args().v, {65, 65 + middle}, byte);
                run(*ruined);
                SCOPED_TRACE(byte);
                expect_same_sequence(*clean, 1, *ruined, 1);
            }
        }
    }
}

// ---- 1.7 Repeatability

TEST_F(Gpu, TheSameBitsOnEveryRun) {
    for (const std::string text :
         {"b3 sq1000 sk1300 hq8 hk2 d128 bf16 causal lse", "b128 s128 hq32 hk8 d128 bf16 causal",
          "b1 s4096 h16 d64 f16 full lse", "b1 s2000 h4 d128 bf16 causal sd30",
          "varlen qlens=5,0,1300,70 klens=64,9,3000,1 h4 d64 bf16 causal lse"}) {
        const std::vector<std::byte> first = outputs_of(text);
        for (int again = 0; again < 3; ++again) EXPECT_EQ(outputs_of(text), first) << text;
    }
}

// The first sequence of a batch draws the same inputs whatever follows it.
TEST_F(Gpu, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d128 bf16 causal lse", " hq4 hk2 d64 f16 lse", " h1 d128 bf16 lse",
                                   " hq8 hk1 d64 bf16 causal lse sd20"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq1031 sk1503", "b9 sq1031 sk1503"},
              {"b1 sq1 sk5000", "b9 sq1 sk5000"},
              {"b1 s64", "b9 s64"},
              {"varlen qlens=631 klens=903",
               "varlen qlens=631,5,0,300,64,9,1,128,77 klens=903,9,4,0,64,500,1,128,300"}}) {
            const auto one = on_gpu(alone + tail), nine = on_gpu(together + tail);
            run(*one);
            run(*nine);
            expect_same_sequence(*one, 0, *nine, 0);
        }
    }
}

// A varlen batch of equal lengths is the dense batch.
TEST_F(Gpu, VarlenOfEqualLengthsGivesTheDenseResult) {
    for (const std::string tail : {" hq4 hk2 d128 bf16 causal lse", " h3 d64 f16 lse"}) {
        for (const auto& [dense_lengths, lengths] :
             {std::pair<std::string, std::string>{"b3 sq200 sk300", "varlen qlens=200,200,200 klens=300,300,300"},
              {"b3 sq2000 sk3500", "varlen qlens=2000,2000,2000 klens=3500,3500,3500"}}) {
            const auto dense = on_gpu(dense_lengths + tail), packed = on_gpu(lengths + tail);
            run(*dense);
            run(*packed);
            for (int64_t sequence = 0; sequence < 3; ++sequence)
                expect_same_sequence(*dense, sequence, *packed, sequence);
        }
    }
}

// One query head of a call, with its own KV head.
foveal_forward_args one_head(const foveal_forward_args& all, int64_t head, int64_t group) {
    foveal_forward_args args = all;
    const auto narrow = [](foveal_tensor& t, int32_t dimension, int64_t index, int64_t element_bytes) {
        if (t.data == nullptr) return;
        t.data = static_cast<std::byte*>(t.data) + index * t.stride[dimension] * element_bytes;
        t.shape[dimension] = 1;
    };
    const int32_t heads = all.q.rank - 2;  // [b, s, h, d] or [total, h, d]
    narrow(args.q, heads, head, 2);
    narrow(args.out, heads, head, 2);
    narrow(args.k, heads, head / group, 2);
    narrow(args.v, heads, head / group, 2);
    narrow(args.lse, all.lse.rank - 2, head, 4);
    narrow(args.sinks, 0, head, 4);
    return args;
}

// Tiles that hold rows of several heads give what each head gets alone. (But for softcap, whose form a warp's rows
// decide together.)
TEST_F(Gpu, PackedHeadsGiveTheSameBits) {
    int packed_cases = 0;
    for (const std::string heads :
         {" hq8 hk4", " hq8 hk2", " hq16 hk2", " hq16 hk1", " hq6 hk2", " hq5 hk1", " hq14 hk2", " hq9 hk1"})
        for (const std::string tail :
             {" d128 bf16 full lse sinks", " d128 bf16 causal", " d128 f16 causal lse sd20 pad",
              " d64 bf16 causal sinks", " d64 f16 right5 lse bhsd", " d80 bf16 full qkv", " d192 dv128 bf16 causal",
              " d256 bf16 causal lse", " d256 f16 full sinks", " d512 bf16 causal", " d128 bf16 causal topleft lse",
              " d64 bf16 left9 causal", " d128 f16 left100 right3 lse", " d256 bf16 left63 causal sinks"})
            for (const std::string shape : {"b2 s3", "b3 sq40 sk300", "b2 s64", "b2 sq130 sk77", "b3 s200",
                                            "b1 sq1000 sk1100", "b3 sq70 sk500 used_q=0,70,33 used_k=500,2,77",
                                            "varlen qlens=1,0,33,200,64,1300,7 klens=400,9,33,300,64,1300,0"}) {
                // One buffer needs equal lengths; neither layout is for varlen.
                if (tail.ends_with("qkv") && !shape.starts_with("b2 s3") && !shape.starts_with("b2 s64")) continue;
                if (tail.ends_with("bhsd") && shape.starts_with("varlen")) continue;
                const auto data = on_gpu(shape + heads + tail);
                packed_cases += plan_of(shape + heads + tail).find("rows of one head;") == std::string::npos;
                run(*data);
                const std::vector<std::byte> packed = outputs(*data);
                data->poison_outputs();
                const Case& c = data->the_case();
                for (int64_t head = 0; head < c.heads_q; ++head) {
                    const foveal_forward_args args = one_head(data->args(), head, c.group());
                    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
                }
                EXPECT_TRUE(outputs(*data) == packed) << to_text(c);
            }
    EXPECT_GT(packed_cases, 400);
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
