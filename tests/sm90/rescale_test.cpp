// The softmax of the sm90 kernel keeps a row's first reference until a row leaves its range, and corrects it then
// (src/sm90/forward/softmax.cuh). A counter proves that the correction runs where it must and nowhere else. It links
// the library's objects in place of the shared library, so that it can launch a plan with a counter in its parameters.
#include <gtest/gtest.h>

#include <string>

#include "sm90/device.hpp"
#include "sm90/forward/plan.hpp"
#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

class Counter {
   public:
    Counter() : memory_(sizeof(unsigned long long)) {
        require_cuda(cudaMemset(memory_.as(), 0, memory_.bytes()), "cudaMemset");
    }
    unsigned long long* address() const { return memory_.as<unsigned long long>(); }
    unsigned long long value() const {
        unsigned long long count = 0;
        memory_.download(&count);
        return count;
    }

   private:
    DeviceBuffer memory_;
};

void run_counted(const CaseData& data, const Counter& counter) {
    constexpr int32_t kDevice = 0;
    const foveal::ForwardProblem problem = foveal::validate(data.args());
    const foveal::ForwardPointers pointers = foveal::pointers_of(data.args());
    const foveal::sm90::Sm90ForwardPlan plan(problem, kDevice, foveal::sm90::traits_of(kDevice));
    foveal::sm90::PreparedForward kernel = plan.kernel_for(pointers);
    kernel.params.rescales = counter.address();
    foveal::sm90::launch_forward(problem, kernel, kDevice, pointers, nullptr);
}

unsigned long long rescales_of(const std::string& text) {
    const auto data = on_gpu(text);
    const Counter counter;
    run_counted(*data, counter);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << text << "\n" << verdict.failure;
    std::printf("  %llu corrections: %s\n", counter.value(), text.c_str());
    return counter.value();
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
