// The softmax of the sm90 kernel keeps a row's first reference until a row leaves its range, and corrects it then
// (src/sm90/forward/softmax.cuh). Kernels that count the corrections, compiled here from the library's source and given
// what its plan prepares, prove that it runs where it must and nowhere else.
#include <gtest/gtest.h>

#include <string>

#include "cuda/kernel_table.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/kernel.cuh"
#include "sm90/forward/launch.hpp"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

namespace sm90 = foveal::sm90;
using foveal::DType;
using sm90::ForwardVariant;

template <DType kType, int32_t kTileIndex, ForwardVariant kVariant>
struct Counting {
    static constexpr sm90::ForwardConfig kConfig{kType, sm90::kForwardTiles[kTileIndex].tile, kVariant, false, true};
};

struct CountingKernel {
    DType dtype;
    sm90::ForwardChoice choice;
    const void* (*symbol)();
};

template <DType kType, int32_t kTileIndex, ForwardVariant kVariant>
constexpr CountingKernel counting() {
    return {kType, {kTileIndex, kVariant}, &sm90::forward_kernel<Counting<kType, kTileIndex, kVariant>>};
}

constexpr CountingKernel kCountingKernels[] = {
    counting<DType::bf16, sm90::kTileD128, ForwardVariant::lse>(),
    counting<DType::bf16, sm90::kTileD128, ForwardVariant::options_lse>(),
    counting<DType::bf16, sm90::kTileD128, ForwardVariant::softcap_lse>(),
    counting<DType::bf16, sm90::kTileD64, ForwardVariant::plain>(),
    counting<DType::bf16, sm90::kTileD64, ForwardVariant::softcap>(),
    counting<DType::bf16, sm90::kTileD64Options, ForwardVariant::options>(),
    counting<DType::f16, sm90::kTileD128, ForwardVariant::lse>(),
    counting<DType::f16, sm90::kTileD128, ForwardVariant::options_lse>(),
    counting<DType::f16, sm90::kTileD128, ForwardVariant::softcap_lse>(),
    counting<DType::f16, sm90::kTileD64, ForwardVariant::plain>(),
    counting<DType::f16, sm90::kTileD64, ForwardVariant::softcap>(),
    counting<DType::f16, sm90::kTileD64Options, ForwardVariant::options>(),
};

CUfunction function_of(DType dtype, const sm90::PreparedForward& kernel) {
    for (const CountingKernel& counting : kCountingKernels)
        if (counting.dtype == dtype && counting.choice == kernel.schedule.choice)
            return foveal::cuda::load({counting.symbol, sm90::shared_bytes(kernel.tile())});
    ADD_FAILURE() << "this test has no kernel for what the plan chose";
    return nullptr;
}

// The corrections since the last call.
template <DType kType>
unsigned long long take_count() {
    unsigned long long count = 0;
    constexpr unsigned long long kZero = 0;
    require_cuda(cudaMemcpyFromSymbol(&count, sm90::rescale_count<kType>, sizeof count), "cudaMemcpyFromSymbol");
    require_cuda(cudaMemcpyToSymbol(sm90::rescale_count<kType>, &kZero, sizeof kZero), "cudaMemcpyToSymbol");
    return count;
}

unsigned long long run_counted(const CaseData& data) {
    constexpr int32_t kDevice = 0;
    const foveal::ForwardProblem problem = foveal::validate(data.args());
    const foveal::ForwardPointers pointers = foveal::pointers_of(data.args());
    const sm90::Sm90ForwardPlan plan(problem, kDevice, sm90::traits_of(kDevice));
    const sm90::PreparedForward& kernel = plan.kernel();
    const CUfunction function = function_of(problem.dtype, kernel);
    if (function == nullptr) return ~0ull;
    sm90::enqueue_forward(function, problem, kernel, pointers, nullptr);
    require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    return problem.dtype == DType::bf16 ? take_count<DType::bf16>() : take_count<DType::f16>();
}

unsigned long long rescales_of(const std::string& text) {
    const auto data = on_gpu(text);
    const unsigned long long count = run_counted(*data);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << text << "\n" << verdict.failure;
    std::printf("  %llu corrections: %s\n", count, text.c_str());
    return count;
}

const char* const kShapes[] = {"b2 s1000 hq4 hk2 d128 bf16 lse", "b2 s1000 hq4 hk2 d64 bf16",
                               "b2 s1000 hq4 hk2 d128 f16 lse", "b2 s1000 hq4 hk2 d64 f16"};

TEST_F(Gpu, TheReferenceIsKeptOnOrdinaryInputs) {
    for (const std::string shape : kShapes) {
        for (const std::string kind :
             {" full", " causal", " causal sd0.3", " causal flat", " causal sink60@0", " full sink200@0",
              " causal softcap30", " causal alibi", " causal sinks", " causal sinks40"}) {
            EXPECT_EQ(rescales_of(shape + kind), 0u) << shape << kind;
        }
    }
}

TEST_F(Gpu, TheReferenceIsCorrectedWhereKeysOutgrowIt) {
    for (const std::string shape : kShapes) {
        for (const std::string kind :
             {" full sink60@mid", " causal sink60@mid", " full sink200@last", " causal grow20", " causal grow100"}) {
            EXPECT_GT(rescales_of(shape + kind), 0u) << shape << kind;
        }
    }
}

}  // namespace
}  // namespace foveal_testing
