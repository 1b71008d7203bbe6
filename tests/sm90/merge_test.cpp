// Contract 1.8 for merging on the sm90 backend, and tensors beyond 32 bits. What it computes: merge_test.cpp.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/gpu_spin.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {
namespace {

constexpr int64_t kRows = 200, kHeads = 4, kChannels = 64;

// Two parts of equal weight, each constant, and room for their mean.
struct TwoParts {
    TwoParts()
        : outs{{kSm90, FOVEAL_BF16, {kRows, kHeads, kChannels}}, {kSm90, FOVEAL_BF16, {kRows, kHeads, kChannels}}},
          lses{{kSm90, FOVEAL_F32, {kHeads, kRows}}, {kSm90, FOVEAL_F32, {kHeads, kRows}}},
          out(kSm90, FOVEAL_BF16, {kRows, kHeads, kChannels}),
          lse(kSm90, FOVEAL_F32, {kHeads, kRows}) {
        for (StridedTensor& part : lses) part.set(constant(kHeads * kRows, 0));
        set(1, 3);
    }

    static std::vector<float> constant(int64_t elements, float x) {
        return std::vector<float>(static_cast<size_t>(elements), x);
    }
    void set(float a, float b) {
        outs[0].set(constant(kRows * kHeads * kChannels, a));
        outs[1].set(constant(kRows * kHeads * kChannels, b));
    }
    void merge(cudaStream_t stream) {
        foveal::merge({outs[0].view(), lses[0].view()}, {outs[1].view(), lses[1].view()}, out.view(),
                      {.lse = lse.view()}, stream);
    }
    void expect_mean(float mean) { EXPECT_EQ(out.values(), constant(kRows * kHeads * kChannels, mean)); }

    StridedTensor outs[2], lses[2], out, lse;
};

TEST_F(Gpu, MergeIsAsynchronousOnItsStream) {
    TwoParts data;
    const Stream stream;
    data.merge(stream);
    stream.synchronize();
    data.expect_mean(2);
    spin(50, stream);
    data.merge(stream);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "the call waited for the device";
    (void)cudaGetLastError();  // cudaErrorNotReady is none
    stream.synchronize();
}

TEST_F(Gpu, MergeGraphReplaysWithNewContents) {
    TwoParts data;
    const Stream stream;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    data.merge(stream);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    for (const float b : {3.0f, 7.0f}) {
        data.set(1, b);
        require_cuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
        stream.synchronize();
        data.expect_mean((1 + b) / 2);
    }
    require_cuda(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
}

TEST_F(Gpu, MergeTakesNoDeviceMemory) {
    TwoParts data;
    data.merge(nullptr);
    require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    size_t before = 0, after = 0, total = 0;
    require_cuda(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    for (int n = 0; n < 1000; ++n) data.merge(nullptr);
    require_cuda(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    EXPECT_EQ(after, before);
}

// Each tensor of 2^31 elements and more, all of whose bytes are alike.
TEST_F(Gpu, MergeOfMoreThanTwoToThe31Elements) {
    constexpr int64_t kManyRows = (int64_t{1} << 31) / (32 * 128) + 5;
    constexpr size_t kBytes = static_cast<size_t>(kManyRows) * 32 * 128 * 2;
    constexpr int kBytesOfA = 0x3F, kBytesOfB = 0x40;
    std::vector<DeviceBuffer> buffers;
    try {
        for (int i = 0; i < 3; ++i) buffers.emplace_back(kBytes);
        buffers.emplace_back(static_cast<size_t>(kManyRows) * 32 * 4);
    } catch (const OutOfMemory& error) {
        GTEST_SKIP() << "SKIPPED: " << error.what();
    }
    require_cuda(cudaMemset(buffers[0].as<void>(), kBytesOfA, kBytes), "cudaMemset");
    require_cuda(cudaMemset(buffers[1].as<void>(), kBytesOfB, kBytes), "cudaMemset");
    require_cuda(cudaMemset(buffers[2].as<void>(), 0xFF, kBytes), "cudaMemset");
    require_cuda(cudaMemset(buffers[3].as<void>(), 0, buffers[3].bytes()), "cudaMemset");
    const auto out = [&](size_t i) {
        return foveal::Tensor::packed(buffers[i].as<void>(), foveal::DType::bf16, {kManyRows, 32, 128});
    };
    const auto lse = foveal::Tensor::packed(buffers[3].as<void>(), foveal::DType::f32, {32, kManyRows});
    foveal::merge({out(0), lse}, {out(1), lse}, out(2));

    const float mean = (bf16_to_float(kBytesOfA * 0x101) + bf16_to_float(kBytesOfB * 0x101)) / 2;
    const uint16_t expected = float_to_bf16(mean);
    std::vector<uint16_t> all(kBytes / 2);
    buffers[2].download(all.data());
    int64_t wrong = 0;
    for (const uint16_t x : all) wrong += x != expected;
    EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace foveal_testing
