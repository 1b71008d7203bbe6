// Contract 1.8 for appends on the sm90 backend, and caches beyond 32 bits. What it writes: append_test.cpp of
// contract/.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/gpu_spin.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {
namespace {

constexpr int64_t kBatch = 3, kHeads = 2, kDim = 64, kPageSize = 4, kPages = 9, kMaxPages = 3;

// A row of ones for each of three sequences, whose pages are 3 i, 3 i + 1, 3 i + 2.
struct OneRowEach {
    OneRowEach()
        : k(kSm90, FOVEAL_BF16, {kBatch, 1, kHeads, kDim}),
          cache(kSm90, FOVEAL_BF16, {kPages, kPageSize, kHeads, kDim}),
          lengths(kSm90, FOVEAL_I32, {kBatch}),
          table(kSm90, FOVEAL_I32, {kBatch, kMaxPages}) {
        k.set(std::vector<float>(kBatch * kHeads * kDim, 1));
        table.set({0, 1, 2, 3, 4, 5, 6, 7, 8});
        set_length(0);
    }
    void set_length(int64_t length) {
        lengths.set(std::vector<float>(kBatch, static_cast<float>(length)));
        cache.set(std::vector<float>(kPages * kPageSize * kHeads * kDim, 0));
    }
    void append(cudaStream_t stream) {
        foveal::append(
            {.k = k.view(), .k_cache = cache.view(), .cache_lengths = lengths.view(), .block_table = table.view()},
            stream);
    }
    void expect_row(int64_t length) {
        const std::vector<float> values = cache.values();
        for (size_t i = 0; i < values.size(); ++i) {
            const auto row = static_cast<int64_t>(i) / (kHeads * kDim) % (kMaxPages * kPageSize);
            ASSERT_EQ(values[i], row == length ? 1 : 0) << "element " << i;
        }
    }

    StridedTensor k, cache, lengths, table;
};

TEST_F(Gpu, AppendIsAsynchronousOnItsStream) {
    OneRowEach data;
    const Stream stream;
    data.append(stream);
    stream.synchronize();
    data.expect_row(0);
    spin(50, stream);
    data.append(stream);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "the call waited for the device";
    (void)cudaGetLastError();  // cudaErrorNotReady is none
    stream.synchronize();
}

TEST_F(Gpu, AppendGraphReplaysWithOtherLengths) {
    OneRowEach data;
    const Stream stream;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    data.append(stream);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    for (int64_t length = 0; length < kMaxPages * kPageSize; ++length) {
        data.set_length(length);
        require_cuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
        stream.synchronize();
        data.expect_row(length);
    }
    require_cuda(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
}

TEST_F(Gpu, AppendTakesNoDeviceMemory) {
    OneRowEach data;
    data.append(nullptr);
    require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    size_t before = 0, after = 0, total = 0;
    require_cuda(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    for (int n = 0; n < 1000; ++n) data.append(nullptr);
    require_cuda(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    EXPECT_EQ(after, before);
}

// The last row of a cache of more than 2^32 elements.
TEST_F(Gpu, AppendToACacheOfMoreThanTwoToThe32Elements) {
    constexpr int64_t kRowElements = 32 * 128, kManyPages = (int64_t{1} << 32) / (16 * kRowElements) + 3;
    DeviceBuffer cache;
    try {
        cache = DeviceBuffer(static_cast<size_t>(kManyPages * 16 * kRowElements) * 2);
    } catch (const OutOfMemory& error) {
        GTEST_SKIP() << "SKIPPED: " << error.what();
    }
    require_cuda(cudaMemset(cache.as<void>(), 0, cache.bytes()), "cudaMemset");
    StridedTensor k(kSm90, FOVEAL_BF16, {1, 32, 128});
    k.set(std::vector<float>(kRowElements, 1));
    const DeviceBuffer slot(std::vector<int64_t>{kManyPages * 16 - 1});
    foveal::append({.k = k.view(),
                    .k_cache = foveal::Tensor::packed(cache.as<void>(), foveal::DType::bf16, {kManyPages, 16, 32, 128}),
                    .slot_mapping = foveal::Tensor::packed(slot.as<void>(), foveal::DType::i64, {1})});
    std::vector<uint16_t> last(2 * kRowElements);
    require_cuda(cudaMemcpy(last.data(), cache.as<uint16_t>() + cache.bytes() / 2 - last.size(), last.size() * 2,
                            cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
    for (size_t i = 0; i < last.size(); ++i) ASSERT_EQ(last[i], i < kRowElements ? 0 : float_to_bf16(1)) << i;
}

}  // namespace
}  // namespace foveal_testing
