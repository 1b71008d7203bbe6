// The sm90 decode kernel, of a varlen q beside the forward kernel, in graphs whose lengths change and on streams side
// by side (contract 1.8).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/sm90/decoder.hpp"

namespace foveal_testing {
namespace {

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

// Sequences that are chunks of a prompt in one replay and single tokens in the next.
TEST_F(DecodeGpu, GraphReplaysOtherMixesOfRows) {
    for (const std::string tail : {" hq8 hk2 d128 bf16 causal lse page64",
                                   " hq8 hk2 d64 f16 causal softcap20 lse page16", " hq4 hk1 d256 bf16"}) {
        const std::string text = "varlen qlens=150,150,150,150 sk1400 used_k=1400,700,70,1399" + tail;
        const auto data = on_gpu(text + " used_q=150,150,150,150");
        const ForwardProblem problem = foveal::validate(data->args());
        ForwardPointers pointers = foveal::pointers_of(data->args());
        DeviceBuffer rows(std::vector<int32_t>{0, 0, 0, 0});
        pointers.seqused_q = rows.as<int32_t>();
        const Decoder replayed(problem, kAllSms);
        const Stream stream;
        replayed.launch(pointers, stream);  // kernels load when they are first used
        const Graph graph(stream, [&] { replayed.launch(pointers, stream); });
        for (int32_t n = 0; n < 40; ++n) {
            const Watchdog watchdog(kSeconds, text + ": replay " + std::to_string(n));
            const std::vector<int32_t> now = {n % 20, 1, n % 3 == 0 ? 150 : n % 3, 17 * (n % 9)};
            rows.upload(now.data());
            data->poison_outputs();
            graph.replay(stream);
            stream.synchronize();
            const auto other = on_gpu(text + list("used_q", {now.begin(), now.end()}));
            EXPECT_EQ(outputs(*data), decoded(*other, n % 2 == 0 ? kAllSms : 7)) << "replay " << n;
            if (HasFailure()) return;
        }
        replayed.expect_clean();
    }
}

// A server's steps have batches of all sizes, and one workspace that was zero once (contract 1.8).
TEST_F(DecodeGpu, OneWorkspaceServesCallsOfAllShapes) {
    const std::string tail = " hq8 hk2 d128 bf16 causal lse page64";
    std::vector<std::string> texts = {"b1 sq1 sk9000" + tail,
                                      "varlen qlens=1,70,4,1,1 sk3000" + tail,
                                      "b2 sq4 sk5000 used_k=5000,4097" + tail,
                                      "b1 sq1 sk9000 hq8 hk1 d256 bf16 lse page16",
                                      "varlen qlens=8,8,8 sk4000" + tail,
                                      "b1 sq1 sk9000 hq8 hk1 d512 f16 lse page64"};
    std::string lengths;
    for (int n = 0; n < 600; ++n) lengths += (n == 0 ? "" : ",") + std::to_string(n * 37 % 400);
    texts.push_back("b600 sq1 sk400 used_k=" + lengths + tail);
    std::vector<std::unique_ptr<CaseData>> data;
    std::vector<std::unique_ptr<Decoder>> plans;
    std::vector<std::vector<std::byte>> expected;
    int64_t bytes = 0;
    for (const std::string& text : texts) {
        data.push_back(on_gpu(text));
        expected.push_back(decoded(*data.back(), kAllSms));
        plans.push_back(std::make_unique<Decoder>(foveal::validate(data.back()->args()), kAllSms));
        bytes = std::max(bytes, plans.back()->plan().workspace_bytes());
    }
    const DeviceBuffer workspace(static_cast<size_t>(bytes));
    require_cuda(cudaMemset(workspace.as<>(), 0, workspace.bytes()), "cudaMemset");
    for (size_t n = 0; n < 6 * texts.size(); ++n) {
        const size_t i = n * 5 % texts.size();
        const Watchdog watchdog(kSeconds, texts[i]);
        ForwardPointers pointers = foveal::pointers_of(data[i]->args());
        pointers.workspace = workspace.as<>();
        pointers.workspace_bytes = workspace.bytes();
        data[i]->poison_outputs();
        plans[i]->plan().launch(pointers, nullptr);
        synchronize();
        ASSERT_EQ(outputs(*data[i]), expected[i]) << texts[i] << ", call " << n;
    }
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

}  // namespace
}  // namespace foveal_testing
