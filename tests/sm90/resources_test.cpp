// Contract 1.8 on the sm90 backend: streams, graphs, threads, memory and the host cost of a call.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/gpu_spin.hpp"

namespace foveal_testing {
namespace {

const char* const kCase = "b3 sq1000 sk1300 hq8 hk2 d128 bf16 causal lse";

class Graph {
   public:
    // Captures one call on `stream`.
    Graph(const CaseData& data, cudaStream_t stream) {
        require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
        status_ = foveal_forward(&data.args(), stream);
        cudaGraph_t graph = nullptr;
        require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
        require_cuda(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate");
        require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    ~Graph() { (void)cudaGraphExecDestroy(executable_); }

    foveal_status capture_status() const { return status_; }
    void replay(const Stream& stream) const {
        require_cuda(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
        stream.synchronize();
    }

   private:
    cudaGraphExec_t executable_ = nullptr;
    foveal_status status_ = FOVEAL_INTERNAL_ERROR;
};

size_t tensor_bytes(const foveal_tensor& tensor) {
    size_t bytes = 2;
    for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
    return bytes;
}

// The producer spins for 50 ms on the caller's stream before it writes q, k and v: a library that used another stream,
// or read too early, would see NaN; one that synchronised would return late.
TEST_F(Gpu, WaitsForTheProducerOnItsStreamAndForNothingElse) {
    const std::vector<std::byte> expected = outputs_of(kCase);
    const auto data = on_gpu(kCase);
    run(*data);
    data->poison_outputs();
    const Stream stream;
    std::vector<DeviceBuffer> copies;
    for (const foveal_tensor* tensor : {&data->args().q, &data->args().k, &data->args().v}) {
        copies.emplace_back(tensor_bytes(*tensor));
        require_cuda(cudaMemcpy(copies.back().as(), tensor->data, copies.back().bytes(), cudaMemcpyDeviceToDevice),
                     "copy");
        require_cuda(cudaMemset(tensor->data, 0xFF, copies.back().bytes()), "cudaMemset");
    }
    data->synchronize();

    const auto begin = std::chrono::steady_clock::now();
    spin(50, stream);
    size_t i = 0;
    for (const foveal_tensor* tensor : {&data->args().q, &data->args().k, &data->args().v}) {
        require_cuda(cudaMemcpyAsync(tensor->data, copies[i].as(), copies[i].bytes(), cudaMemcpyDeviceToDevice, stream),
                     "copy");
        ++i;
    }
    run(*data, stream);
    const auto returned = std::chrono::steady_clock::now() - begin;
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "the call waited for the device";
    EXPECT_LT(returned, std::chrono::milliseconds(40));
    (void)cudaGetLastError();  // cudaErrorNotReady is none
    stream.synchronize();
    EXPECT_EQ(outputs(*data), expected);
}

// The second kernel sets itself up beside the end of the first (programmatic dependent launch), and must not read
// before that end: it would see poison.
TEST_F(Gpu, AForwardReadsWhatTheOneBeforeItWrote) {
    const auto first = on_gpu("b2 s2000 h4 d128 bf16 causal"), second = on_gpu("b2 s2000 h4 d128 bf16 causal seed2");
    foveal_forward_args chained = second->args();
    chained.q = first->args().out;
    run(*first);
    first->synchronize();
    ASSERT_EQ(foveal_forward(&chained, nullptr), FOVEAL_OK) << foveal_last_error();
    const std::vector<std::byte> expected = outputs(*second);
    const Stream stream;
    for (int i = 0; i < 20; ++i) {
        first->poison_outputs();
        second->poison_outputs();
        first->synchronize();
        run(*first, stream);
        ASSERT_EQ(foveal_forward(&chained, stream), FOVEAL_OK) << foveal_last_error();
        stream.synchronize();
        ASSERT_EQ(outputs(*second), expected);
    }
}

TEST_F(Gpu, GraphReplaysWithNewContents) {
    for (const std::string& text :
         {std::string(kCase), std::string("varlen qlens=5,0,1300,70 klens=64,9,3000,1 hq4 hk2 d64 f16 causal lse")}) {
        const auto data = on_gpu(text);
        run(*data);  // so that what is resolved once is resolved
        data->poison_outputs();
        const Stream stream;
        const Graph graph(*data, stream);
        ASSERT_EQ(graph.capture_status(), FOVEAL_OK) << foveal_last_error();
        EXPECT_EQ(data->scan(TensorId::kOut).poison, data->scan(TensorId::kOut).elements)
            << "captured, yet already run";
        graph.replay(stream);
        EXPECT_EQ(outputs(*data), outputs_of(text));
        data->refill(2);
        data->poison_outputs();
        graph.replay(stream);
        EXPECT_EQ(outputs(*data), outputs_of(text + " seed2"));
        EXPECT_NE(outputs(*data), outputs_of(text));
    }
}

// The very first call of a process may be captured: run this alone as well (ctest: gpu_first_call_captured).
TEST_F(Gpu, TheFirstCallCanBeCaptured) {
    const auto data = on_gpu(kCase);
    const Stream stream;
    const Graph graph(*data, stream);
    ASSERT_EQ(graph.capture_status(), FOVEAL_OK) << foveal_last_error();
    graph.replay(stream);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

TEST_F(Gpu, TwoThreadsOnTwoStreams) {
    const std::string texts[] = {kCase, "varlen qlens=5,0,1300,70 klens=64,9,3000,1 hq4 hk2 d64 f16 causal lse"};
    const std::vector<std::byte> expected[] = {outputs_of(texts[0]), outputs_of(texts[1])};
    const std::unique_ptr<CaseData> data[] = {on_gpu(texts[0]), on_gpu(texts[1])};
    foveal_status worst[] = {FOVEAL_OK, FOVEAL_OK};
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 2; ++i) {
        threads.emplace_back([&, i] {
            const Stream stream;
            for (int n = 0; n < 200; ++n) {
                const foveal_status status = foveal_forward(&data[i]->args(), stream);
                if (status != FOVEAL_OK) worst[i] = status;
            }
            stream.synchronize();
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(worst[i], FOVEAL_OK);
        EXPECT_EQ(outputs(*data[i]), expected[i]);
    }
}

size_t free_bytes() {
    size_t free = 0, total = 0;
    require_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
}

TEST_F(Gpu, DeviceMemoryIsNeitherTakenNorLeaked) {
    const std::string texts[] = {kCase, "b4 s700 h4 d64 f16 full",
                                 "varlen qlens=5,0,1300,70 klens=64,9,3000,1 hq4 hk2 d128 bf16 lse"};
    std::vector<std::unique_ptr<CaseData>> data;
    for (const std::string& text : texts) data.push_back(on_gpu(text));
    for (const auto& one : data) run(*one);  // loads each kernel's code
    data[0]->synchronize();
    const size_t before = free_bytes();
    for (int n = 0; n < 1000; ++n) run(*data[static_cast<size_t>(n) % data.size()]);
    EXPECT_EQ(free_bytes(), before) << "while running";
    data[0]->synchronize();
    EXPECT_EQ(free_bytes(), before);
}

TEST_F(Gpu, TheCurrentDeviceStaysAndAStreamsDeviceCounts) {
    int devices = 0;
    require_cuda(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    if (devices < 2) GTEST_SKIP() << "SKIPPED: needs two devices, there is " << devices;
    require_cuda(cudaSetDevice(1), "cudaSetDevice");
    if (!has_sm90_device()) GTEST_SKIP() << "SKIPPED: device 1 is no Hopper GPU";
    const auto data = on_gpu(kCase);
    const Stream stream;
    require_cuda(cudaSetDevice(0), "cudaSetDevice");
    run(*data, stream);
    int current = -1;
    require_cuda(cudaGetDevice(&current), "cudaGetDevice");
    EXPECT_EQ(current, 0);
    stream.synchronize();
    require_cuda(cudaSetDevice(1), "cudaSetDevice");
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
    require_cuda(cudaSetDevice(0), "cudaSetDevice");
}

// What validation, the plan's look-up and four tensor maps may cost on top of a launch.
constexpr double kMaxCallOverheadUs = 2.0;

// Median host time of a call that enqueues on `stream`.
template <class Call>
double median_call_us(Call&& call, const Stream& stream) {
    using Clock = std::chrono::steady_clock;
    std::vector<double> microseconds;
    for (int n = 0; n < 4000; ++n) {
        const auto begin = Clock::now();
        call();
        const auto end = Clock::now();
        microseconds.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
        if (n % 50 == 0) stream.synchronize();  // a full queue would make calls wait
    }
    stream.synchronize();
    std::nth_element(microseconds.begin(), microseconds.begin() + 2000, microseconds.end());
    return microseconds[2000];
}

// A launch alone costs what the driver and the machine cost; the library's part is what comes on top.
TEST_F(Gpu, ACallCostsTheHostLittle) {
    const Stream stream;
    const double launch_us = median_call_us([&] { launch_nothing(stream); }, stream);
    for (const std::string text :
         {"b1 s64 h1 d128 bf16 causal", "b1 s64 h1 d64 f16 full lse", "varlen qlens=64 klens=64 h1 d128 bf16 causal",
          "b1 sq1 sk64 used_k=64 h1 d128 bf16 page64"}) {
        const auto data = on_gpu(text);
        foveal_status status = FOVEAL_OK;
        const double us =
            median_call_us([&] { status = std::max(status, foveal_forward(&data->args(), stream)); }, stream);
        ASSERT_EQ(status, FOVEAL_OK) << foveal_last_error();
        std::printf("  host cost of a repeated call: %.2f us, of which an empty kernel's launch %.2f us (%s)\n", us,
                    launch_us, text.c_str());
#if defined(NDEBUG)
        EXPECT_LE(us - launch_us, kMaxCallOverheadUs) << text;
#endif
    }
}

}  // namespace
}  // namespace foveal_testing
