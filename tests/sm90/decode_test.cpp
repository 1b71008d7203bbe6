// The sm90 decode kernel (docs/decode.md), of a varlen q beside the forward kernel, against the oracle, and to the bit
// against itself: split over any number of CTAs or not at all, in pages in any order or in none, alone or in a batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/sm90/decoder.hpp"
#include "tests/support/draw.hpp"

namespace foveal_testing {
namespace {

constexpr int32_t kSomeSms[] = {1, 7, 66};

// The oracle's verdict on a run split over all SMs.
void expect_right(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kSm90, [&](const foveal_forward_args& args) {
        const Watchdog watchdog(kSeconds, text);
        const Decoder decoder(foveal::validate(args), kAllSms);
        decoder.launch(foveal::pointers_of(args));
        synchronize();
        decoder.expect_clean();
        return foveal_status{FOVEAL_OK};
    });
    EXPECT_TRUE(result.passed()) << result.message;
}

// The same bits however it is split.
void expect_same_bits(const std::string& text) {
    const auto data = on_gpu(text);
    const std::vector<std::byte> expected = decoded(*data, kAllSms);
    EXPECT_EQ(decoded(*data, kAllSms), expected) << text << " again";
    EXPECT_EQ(decoded(*data, 0), expected) << text << " without a workspace";
    for (const int32_t sms : kSomeSms) EXPECT_EQ(decoded(*data, sms), expected) << text << " on " << sms << " SMs";
}

// ---- drawn cases ----------------------------------------------------------------------------------------------------

struct Heads {
    int64_t q, k;
};

struct DrawnCase {
    std::string problem, pages;  // "": keys in none
};

// Lengths around the ends of pages, blocks and leaves.
DrawnCase draw_case(uint32_t seed) {
    Draw draw(seed);
    const auto page = draw.of<int64_t>({0, 1, 8, 16, 17, 32, 48, 64, 64, 80, 128, 256, 257});
    const auto most = draw.of<int64_t>({1, 64, 200, 517, 1100, 3000});
    std::vector<int64_t> keys;
    for (int i = 0; i < 3; ++i)
        keys.push_back(std::min(most, draw.of<int64_t>({0, 1, std::max<int64_t>(page - 1, 0), page, page + 1, 63, 64,
                                                        65, 127, 129, 200, 517, 1024, 2999, 3000})));
    const auto heads = draw.of<Heads>({{1, 1}, {4, 2}, {8, 1}, {6, 2}, {16, 1}, {8, 2}, {3, 3}, {32, 1}, {10, 2}});
    const auto rows = draw.of<int64_t>({1, 1, 1, 2, 3, 4, 5, 8, 16});
    DrawnCase c;
    const bool varlen_q = draw.one_in(3), varlen_k = !varlen_q && page == 0 && draw.one_in(2);
    const std::string queries =
        varlen_q ? "varlen" + list("qlens", {rows, draw.of<int64_t>({0, 1, 2, 17, 40}), draw.of<int64_t>({1, 5})})
                 : "b3 sq" + std::to_string(rows);
    c.problem = queries + (varlen_k ? list("klens", keys) : " sk" + std::to_string(most) + list("used_k", keys));
    c.problem += " hq" + std::to_string(heads.q) + " hk" + std::to_string(heads.k);
    c.problem += draw.of<std::string>({" d64", " d128", " d128", " d256", " d512", " d80", " d24 dv40", " d96 dv128",
                                       " d192", " d320 dv72", " d264 dv512"});
    c.problem += draw.of<std::string>({" bf16", " bf16", " f16"});
    c.problem += draw.of<std::string>({" full", " causal", " causal", " left40 causal", " left9 right3", " left700"});
    c.problem +=
        draw.of<std::string>({"", "", "", "", " topleft", " qoff=0,5,-3", " qoff=60,100,63", " qoff=-20,517,300"});
    if (draw.one_in(8)) c.problem += " chunk64";
    if (draw.one_in(5)) c.problem += draw.of<std::string>({" softcap20", " softcap200"});
    if (draw.one_in(5)) c.problem += draw.of<std::string>({" alibi", " alibi_b"});
    if (draw.one_in(4)) c.problem += draw.of<std::string>({" sinks", " sinks5"});
    if (rows > 1 && draw.one_in(3)) c.problem += " tree";
    if (rows > 1 && !varlen_q && draw.one_in(4)) c.problem += list("used_q", {rows, rows - 1, 0});
    if (!draw.one_in(4)) c.problem += " lse";
    if (draw.one_in(5)) c.problem += draw.of<std::string>({" sd10", " sd30"});
    if (draw.one_in(6)) c.problem += " sink20@0";
    if (draw.one_in(10)) c.problem += " scale-0.2";
    if (!varlen_k && draw.one_in(3)) c.problem += " pad";
    if (!varlen_k && !varlen_q && draw.one_in(3)) c.problem += " bhsd";
    if (page > 0) c.pages = " page" + std::to_string(page) + draw.of<std::string>({"", "", " csr"});
    if (page > 0 && c.problem.find("dv") == std::string::npos && draw.one_in(3)) c.pages += " pool";
    return c;
}

// Everything that no key is in holds NaN, entries of tables behind a sequence's last page are none. In runs, so that
// they can be shared out among processes.
constexpr uint32_t kRuns = 48, kCasesOfRun = 25;

class DrawnDecodes : public DecodeGpu, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(DrawnDecodes, AreRightAndTheSameHoweverTheyAreSplit) {
    const uint32_t first = GetParam() * kCasesOfRun;
    uint32_t decoded_cases = 0;
    for (uint32_t seed = first; seed < first + kCasesOfRun && !HasFailure(); ++seed) {
        const DrawnCase c = draw_case(seed);
        const std::string text = c.problem + c.pages;
        SCOPED_TRACE("seed " + std::to_string(seed) + ": " + text);
        const ForwardProblem problem = foveal::validate(on_gpu(text)->args());
        // The others' columns are too many parts: they are the forward kernel's.
        if (!foveal::sm90::decodes(problem) && foveal::sm90::decode_choices_of_varlen(problem).empty()) continue;
        ++decoded_cases;
        expect_right(text);
        expect_same_bits(text);
        const std::vector<std::byte> expected = decoded(text, kAllSms);
        if (c.pages.empty()) continue;
        EXPECT_EQ(decoded(text + " order7", kAllSms), expected) << "other pages";
        EXPECT_EQ(decoded(c.problem, kAllSms), expected) << "not in pages";
    }
    EXPECT_TRUE(HasFailure() || decoded_cases >= kCasesOfRun / 2) << decoded_cases;
}

INSTANTIATE_TEST_SUITE_P(Seeds, DrawnDecodes, ::testing::Range(0u, kRuns));

// ---- many keys, many sequences --------------------------------------------------------------------------------------

TEST_F(DecodeGpu, LongSequences) {
    for (const char* text :
         {"b1 sq1 sk20000 hq8 hk2 d128 bf16 lse page64", "b1 sq1 sk33000 hq4 hk1 d64 f16 lse page16",
          "b2 sq1 sk9000 used_k=9000,7777 hq2 hk2 d256 bf16 lse page1",
          "b2 sq4 sk9000 used_k=9000,4097 hq4 hk1 d128 bf16 causal lse page64",
          "b2 sq2 sk9000 used_k=8191,5000 hq8 hk1 d256 f16 causal lse page32",
          "b2 sq1 sk9000 used_k=9000,4000 hq8 hk1 d512 bf16 lse page64",
          "b2 sq3 sk9000 used_k=9000,4000 hq8 hk1 d512 bf16 causal softcap30 lse page16",
          "varlen qlens=1,70,3,0,1 sk9000 used_k=9000,5000,70,3000,8999 hq8 hk2 d128 bf16 causal lse page64",
          "b5 sq1 sk9000 used_k=9000,1,3000,0,8000 hq8 hk1 d128 bf16 lse page64",
          "b5 sq1 sk9000 used_k=9000,1,3000,0,8000 hq4 hk1 d64 bf16 lse page48",
          "b5 sq1 sk9000 used_k=9000,1,3000,0,8000 hq4 hk1 d128 bf16 left1500 causal lse page3"}) {
        expect_right(text);
        expect_same_bits(text);
        if (HasFailure()) return;
    }
}

TEST_F(DecodeGpu, ManySequences) {
    for (const int64_t batch : {31, 32, 33, 64, 100, 1100}) {
        std::vector<int64_t> lengths;
        std::mt19937 random(static_cast<uint32_t>(batch));
        for (int64_t i = 0; i < batch; ++i) lengths.push_back(random() % 4 == 0 ? random() % 700 : random() % 90);
        const std::string text =
            "b" + std::to_string(batch) + " sq1 sk700 hq4 hk1 d64 bf16 lse page64" + list("used_k", lengths);
        expect_right(text);
        expect_same_bits(text);
        if (HasFailure()) return;
    }
}

// ---- batches --------------------------------------------------------------------------------------------------------

// Sequence i of a problem in pages as a problem of its own, in the same memory.
void narrow(ForwardProblem& p, ForwardPointers& at, int64_t i) {
    const auto moved = [](const auto* pointer, int64_t bytes) {
        return reinterpret_cast<decltype(pointer)>(reinterpret_cast<const char*>(pointer) + bytes);
    };
    p.batch = 1;
    at.q = moved(static_cast<const char*>(at.q), i * p.q.batch * 2);
    at.out = static_cast<char*>(at.out) + i * p.out.batch * 2;
    at.lse += i * p.lse.batch;
    at.seqused_k += i * p.seqused_k_stride;
    at.page_entries += i * p.page_table_stride;
}

TEST_F(DecodeGpu, AloneAsInABatch) {
    for (const char* text :
         {"b9 sq1 sk6000 used_k=6000,0,1,63,64,65,5000,2049,777 hq8 hk2 d128 bf16 lse page64",
          "b9 sq1 sk6000 used_k=6000,0,1,63,64,65,5000,2049,777 hq32 hk4 d128 bf16 lse page16",
          "b9 sq4 sk6000 used_k=6000,0,1,63,64,65,5000,2049,777 hq8 hk2 d64 f16 causal softcap30 lse page64",
          "b9 sq1 sk6000 used_k=6000,0,1,63,64,65,5000,2049,777 hq2 hk2 d256 bf16 left4000 causal lse page7"}) {
        const auto data = on_gpu(text);
        const std::vector<std::byte> expected = decoded(*data, kAllSms);
        for (const int32_t sms : {1, 7, 66, kAllSms}) {
            const Watchdog watchdog(kSeconds, text);
            data->poison_outputs();
            for (int64_t i = 0; i < 9; ++i) {
                ForwardProblem problem = foveal::validate(data->args());
                ForwardPointers pointers = foveal::pointers_of(data->args());
                narrow(problem, pointers, i);
                const Decoder decoder(problem, sms);
                decoder.launch(pointers);
                synchronize();
                decoder.expect_clean();
            }
            EXPECT_EQ(outputs(*data), expected) << text << ": alone on " << sms << " SMs";
        }
    }
}

// ---- through the C ABI ----------------------------------------------------------------------------------------------

TEST_F(DecodeGpu, IsWhatForwardTakes) {
    const std::string text = "b4 sq1 sk5000 used_k=5000,4000,1,900 hq8 hk2 d128 bf16 lse page64";
    const auto data = on_gpu(text);
    const std::vector<std::byte> expected = decoded(*data, kAllSms);
    const Watchdog watchdog(kSeconds, text);
    run(*data);
    EXPECT_EQ(outputs(*data), expected) << "without a workspace";
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&data->args(), 0, &plan), FOVEAL_OK) << foveal_last_error();
    const size_t bytes = foveal_plan_workspace_bytes(plan);
    foveal_plan_destroy(plan);
    ASSERT_GT(bytes, 0u);
    const DeviceBuffer workspace(bytes);
    require_cuda(cudaMemset(workspace.as<>(), 0, bytes), "cudaMemset");
    foveal_forward_args args = data->args();
    args.workspace = workspace.as<>();
    args.workspace_bytes = bytes;
    for (int n = 0; n < 3; ++n) {
        data->poison_outputs();
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
        EXPECT_EQ(outputs(*data), expected);
    }
    args.workspace_bytes = bytes - 1;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("workspace_bytes"), std::string::npos) << foveal_last_error();
}

}  // namespace
}  // namespace foveal_testing
