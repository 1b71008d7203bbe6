// The sm90 decode kernel (docs/decode.md) against the oracle, and to the bit against itself: split over any number of
// CTAs or not at all, in pages in any order or in none, alone or in a batch, in a graph with other lengths.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "problem/forward.hpp"
#include "sm90/decode/plan.hpp"
#include "tests/support/draw.hpp"
#include "tests/support/gpu_fixture.hpp"
#include "tests/support/watchdog.hpp"

namespace foveal_testing {
namespace {

using foveal::ForwardPointers;
using foveal::ForwardProblem;
using foveal::sm90::Sm90DecodePlan;

constexpr int32_t kAllSms = 132;
constexpr int32_t kSomeSms[] = {1, 7, 66};
constexpr double kSeconds = 8;  // no launch here takes a hundredth of it

// A plan for a GPU of so many SMs, and a workspace for it whose nodes hold NaN.
class Decoder {
   public:
    Decoder(const ForwardProblem& problem, int32_t sms) : plan_(problem, 0, traits_of(sms)), workspace_(bytes()) {
        const auto nodes = static_cast<size_t>(control_bytes());
        require_cuda(cudaMemset(workspace_.as<>(), 0, nodes), "cudaMemset");
        require_cuda(cudaMemset(workspace_.as<char>() + nodes, 0xFF, workspace_.bytes() - nodes), "cudaMemset");
        require_cuda(cudaDeviceSynchronize(), "cudaMemset");
    }

    const Sm90DecodePlan& plan() const { return plan_; }
    void launch(ForwardPointers pointers, cudaStream_t stream = nullptr) const {
        pointers.workspace = workspace_.as<>();
        pointers.workspace_bytes = workspace_.bytes();
        plan_.launch(pointers, stream);
    }
    void expect_clean() const {
        std::vector<uint8_t> control(static_cast<size_t>(control_bytes()));
        require_cuda(cudaMemcpy(control.data(), workspace_.as<>(), control.size(), cudaMemcpyDeviceToHost), "control");
        EXPECT_EQ(std::count(control.begin(), control.end(), 0), static_cast<int64_t>(control.size()))
            << "control words of the workspace are not zero again";
    }

   private:
    static foveal::cuda::DeviceTraits traits_of(int32_t sms) {
        foveal::cuda::DeviceTraits traits;
        traits.sms = sms;
        return traits;
    }
    size_t bytes() const { return static_cast<size_t>(std::max<int64_t>(plan_.workspace_bytes(), 256)); }
    int64_t control_bytes() const { return plan_.kernel().schedule.workspace.nodes; }

    const Sm90DecodePlan plan_;
    const DeviceBuffer workspace_;
};

void synchronize() { require_cuda(cudaDeviceSynchronize(), "decode"); }

ForwardPointers without_workspace(const foveal_forward_args& args) {
    ForwardPointers pointers = foveal::pointers_of(args);
    pointers.workspace = nullptr;
    pointers.workspace_bytes = 0;
    return pointers;
}

// Outputs of a run split over so many SMs; 0: not split.
std::vector<std::byte> decoded(CaseData& data, int32_t sms) {
    const Watchdog watchdog(kSeconds, to_text(data.the_case()) + " on " + std::to_string(sms) + " SMs");
    const Decoder decoder(foveal::validate(data.args()), std::max(sms, 1));
    data.poison_outputs();
    if (sms > 0)
        decoder.launch(foveal::pointers_of(data.args()));
    else
        decoder.plan().launch(without_workspace(data.args()), nullptr);
    synchronize();
    decoder.expect_clean();
    return outputs(data);
}

std::vector<std::byte> decoded(const std::string& text, int32_t sms) {
    const auto data = on_gpu(text);
    return decoded(*data, sms);
}

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

std::string list(const char* name, const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
    return std::string(" ") + name + "=" + text;
}

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
    const bool varlen_q = draw.one_in(4), varlen_k = !varlen_q && page == 0 && draw.one_in(2);
    c.problem = varlen_q ? "varlen" + list("qlens", {rows, draw.of<int64_t>({0, 1, 2, 40}), 1})
                         : "b3 sq" + std::to_string(rows);
    c.problem += (varlen_k ? list("klens", keys) : " sk" + std::to_string(most) + list("used_k", keys)) + " hq" +
                 std::to_string(heads.q) + " hk" + std::to_string(heads.k);
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

class DecodeGpu : public Gpu {};

// Everything that no key is in holds NaN, entries of tables behind a sequence's last page are none. In runs, so that
// they can be shared out among processes.
constexpr uint32_t kRuns = 48, kCasesOfRun = 25;

class DrawnDecodes : public DecodeGpu, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(DrawnDecodes, AreRightAndTheSameHoweverTheyAreSplit) {
    const uint32_t first = GetParam() * kCasesOfRun;
    for (uint32_t seed = first; seed < first + kCasesOfRun && !HasFailure(); ++seed) {
        const DrawnCase c = draw_case(seed);
        const std::string text = c.problem + c.pages;
        SCOPED_TRACE("seed " + std::to_string(seed) + ": " + text);
        const ForwardProblem problem = foveal::validate(on_gpu(text)->args());
        ASSERT_TRUE(problem.varlen || foveal::sm90::decodes(problem)) << "foveal_forward goes another way";
        expect_right(text);
        expect_same_bits(text);
        if (c.pages.empty()) continue;
        const std::vector<std::byte> expected = decoded(text, kAllSms);
        EXPECT_EQ(decoded(text + " order7", kAllSms), expected) << "other pages";
        EXPECT_EQ(decoded(c.problem, kAllSms), expected) << "not in pages";
    }
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

// ---- graphs and streams ---------------------------------------------------------------------------------------------

class Graph {
   public:
    template <class Enqueue>
    Graph(cudaStream_t stream, Enqueue enqueue) {
        cudaGraph_t graph = nullptr;
        require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
        enqueue();
        require_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
        require_cuda(cudaGraphInstantiate(&executable_, graph, 0), "instantiate");
        require_cuda(cudaGraphDestroy(graph), "destroy graph");
    }
    ~Graph() { (void)cudaGraphExecDestroy(executable_); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    void replay(cudaStream_t stream) const { require_cuda(cudaGraphLaunch(executable_, stream), "replay"); }

   private:
    cudaGraphExec_t executable_ = nullptr;
};

// A thousand replays, each with sequences that are one longer.
TEST_F(DecodeGpu, GraphReplaysWithOtherLengths) {
    const std::string text = "b3 sq1 sk1400 used_k=1400,1400,1400 hq8 hk2 d128 bf16 lse page64";
    const auto data = on_gpu(text);
    const ForwardProblem problem = foveal::validate(data->args());
    ForwardPointers pointers = foveal::pointers_of(data->args());
    DeviceBuffer lengths(std::vector<int32_t>{0, 0, 0});
    pointers.seqused_k = lengths.as<int32_t>();
    const Decoder replayed(problem, kAllSms), eager(problem, kAllSms);
    const Stream stream;
    replayed.launch(pointers, stream);  // kernels load when they are first used
    const Graph graph(stream, [&] { replayed.launch(pointers, stream); });
    int32_t different = 0;
    for (int32_t n = 0; n < 1000; ++n) {
        const Watchdog watchdog(kSeconds, text + ": replay " + std::to_string(n));
        const std::vector<int32_t> now = {n, n + 377, (7 * n) % 1400};
        lengths.upload(now.data());
        graph.replay(stream);
        stream.synchronize();
        const std::vector<std::byte> got = outputs(*data);
        eager.launch(pointers, stream);
        stream.synchronize();
        different += got != outputs(*data);
    }
    EXPECT_EQ(different, 0);
    replayed.expect_clean();
}

TEST_F(DecodeGpu, TwoStreamsWithWorkspacesOfTheirOwn) {
    const char* texts[] = {"b4 sq1 sk5000 used_k=5000,4000,1,900 hq8 hk2 d128 bf16 lse page64",
                           "b4 sq1 sk5000 used_k=300,5000,5000,5000 hq8 hk2 d128 bf16 lse page64 seed2"};
    std::vector<std::unique_ptr<CaseData>> data;
    std::vector<std::vector<std::byte>> expected;
    for (const char* text : texts) {
        data.push_back(on_gpu(text));
        expected.push_back(decoded(*data.back(), kAllSms));
    }
    const Watchdog watchdog(kSeconds, "two streams");
    const Decoder decoders[] = {{foveal::validate(data[0]->args()), kAllSms},
                                {foveal::validate(data[1]->args()), kAllSms}};
    const Stream streams[2];
    for (int n = 0; n < 200; ++n)
        for (size_t i = 0; i < 2; ++i) decoders[i].launch(foveal::pointers_of(data[i]->args()), streams[i]);
    for (size_t i = 0; i < 2; ++i) {
        streams[i].synchronize();
        EXPECT_EQ(outputs(*data[i]), expected[i]);
        decoders[i].expect_clean();
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
