// Contract 1.8 for copies of pages and gathers on the sm90 backend, and caches beyond 32 bits. What they write:
// cache_copy_test.cpp of contract/.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/gpu_spin.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {
namespace {

constexpr int64_t kPages = 8, kPageSize = 4, kHeads = 2, kDim = 64, kPageElements = kPageSize * kHeads * kDim;

// A cache whose page p is p throughout, one pair, and one sequence of two pages.
struct NumberedPages {
    NumberedPages()
        : cache(kSm90, FOVEAL_BF16, {kPages, kPageSize, kHeads, kDim}),
          pair(kSm90, FOVEAL_I32, {1, 2}),
          k(kSm90, FOVEAL_BF16, {2 * kPageSize, kHeads, kDim}),
          ends(kSm90, FOVEAL_I32, {2}),
          table(kSm90, FOVEAL_I32, {1, 2}) {
        ends.set({0, 2 * kPageSize});
        use(0, 1);
    }
    // The pair, and the sequence's pages.
    void use(int64_t src, int64_t dst) {
        std::vector<float> values(kPages * kPageElements);
        for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i / kPageElements);
        cache.set(values);
        pair.set({static_cast<float>(src), static_cast<float>(dst)});
        table.set({static_cast<float>(dst), static_cast<float>(src)});
    }
    void launch(cudaStream_t stream) {
        foveal::copy_pages({.k_cache = cache.view(), .pairs = pair.view()}, stream);
        foveal::gather(
            {.k_cache = cache.view(), .k = k.view(), .cu_seqlens_k = ends.view(), .block_table = table.view()}, stream);
    }
    void expect(int64_t src, int64_t dst) {
        const std::vector<float> pages = cache.values();
        for (size_t i = 0; i < pages.size(); ++i) {
            const auto page = static_cast<int64_t>(i) / kPageElements;
            ASSERT_EQ(pages[i], static_cast<float>(page == dst ? src : page)) << "element " << i;
        }
        for (const float value : k.values()) ASSERT_EQ(value, static_cast<float>(src));
    }

    StridedTensor cache, pair, k, ends, table;
};

TEST_F(Gpu, CacheCopiesAreAsynchronousOnTheirStream) {
    NumberedPages data;
    const Stream stream;
    data.launch(stream);
    stream.synchronize();
    data.expect(0, 1);
    spin(50, stream);
    data.launch(stream);
    EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady) << "the call waited for the device";
    (void)cudaGetLastError();  // cudaErrorNotReady is none
    stream.synchronize();
}

TEST_F(Gpu, CacheCopyGraphReplaysWithOtherPages) {
    NumberedPages data;
    const Stream stream;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    data.launch(stream);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    for (int64_t n = 0; n < 50; ++n) {
        const int64_t src = n * 3 % kPages, dst = (src + 1 + n % (kPages - 1)) % kPages;
        data.use(src, dst);
        require_cuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
        stream.synchronize();
        data.expect(src, dst);
    }
    require_cuda(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
}

TEST_F(Gpu, CacheCopiesTakeNoDeviceMemory) {
    NumberedPages data;
    data.launch(nullptr);
    require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    size_t before = 0, after = 0, total = 0;
    require_cuda(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    for (int n = 0; n < 1000; ++n) data.launch(nullptr);
    require_cuda(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    EXPECT_EQ(after, before);
}

// The last page of a cache of more than 2^32 elements, copied from the first and gathered.
TEST_F(Gpu, CacheCopiesBeyondTwoToThe32Elements) {
    constexpr int64_t kRow = 32 * 128, kManyPages = (int64_t{1} << 32) / (16 * kRow) + 3;
    DeviceBuffer cache;
    try {
        cache = DeviceBuffer(static_cast<size_t>(kManyPages * 16 * kRow) * 2);
    } catch (const OutOfMemory& error) {
        GTEST_SKIP() << "SKIPPED: " << error.what();
    }
    require_cuda(cudaMemset(cache.as<void>(), 0, cache.bytes()), "cudaMemset");
    require_cuda(cudaMemset(cache.as<void>(), 7, 16 * kRow * 2), "cudaMemset");
    const auto pages = foveal::Tensor::packed(cache.as<void>(), foveal::DType::bf16,
                                              {kManyPages, int64_t{16}, int64_t{32}, int64_t{128}});
    StridedTensor pair(kSm90, FOVEAL_I64, {1, 2}), ends(kSm90, FOVEAL_I32, {2}), table(kSm90, FOVEAL_U32, {1, 1}),
        k(kSm90, FOVEAL_BF16, {16, 32, 128});
    pair.set({0, static_cast<float>(kManyPages - 1)});
    table.set({static_cast<float>(kManyPages - 1)});
    ends.set({0, 16});
    foveal::copy_pages({.k_cache = pages, .pairs = pair.view()});
    foveal::gather({.k_cache = pages, .k = k.view(), .cu_seqlens_k = ends.view(), .block_table = table.view()});
    for (const float value : k.values()) ASSERT_EQ(float_to_bf16(value), 0x0707);
    std::vector<uint16_t> before(kRow);  // the last row of the page before
    require_cuda(cudaMemcpy(before.data(), cache.as<uint16_t>() + cache.bytes() / 2 - 17 * kRow, kRow * 2,
                            cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
    for (const uint16_t element : before) ASSERT_EQ(element, 0);
}

}  // namespace
}  // namespace foveal_testing
