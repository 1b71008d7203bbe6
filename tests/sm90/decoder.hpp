// A decode on the GPU, of a varlen q beside the forward kernel, over any number of SMs, with a workspace that is
// checked.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "problem/forward.hpp"
#include "sm90/decode/plan.hpp"
#include "sm90/varlen/plan.hpp"
#include "tests/support/gpu_fixture.hpp"
#include "tests/support/watchdog.hpp"

namespace foveal_testing {

using foveal::ForwardPointers;
using foveal::ForwardProblem;
using foveal::sm90::kDecodeControlBytes;
using foveal::sm90::Sm90DecodePlan;
using foveal::sm90::Sm90VarlenPlan;

inline constexpr int32_t kAllSms = 132;
inline constexpr double kSeconds = 8;  // no launch takes a hundredth of it

class DecodeGpu : public Gpu {};

// " name=1,2,3", of a case.
inline std::string list(const char* name, const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
    return std::string(" ") + name + "=" + text;
}

// A plan for a GPU of so many SMs, and a workspace for it whose nodes hold NaN.
class Decoder {
   public:
    Decoder(const ForwardProblem& problem, int32_t sms) {
        foveal::cuda::DeviceTraits traits;
        traits.sms = sms;
        if (problem.varlen)
            plan_ = std::make_unique<Sm90VarlenPlan>(problem, 0, traits);
        else
            plan_ = std::make_unique<Sm90DecodePlan>(problem, 0, traits);
        workspace_.emplace(static_cast<size_t>(std::max(plan_->workspace_bytes(), kDecodeControlBytes)));
        const auto nodes = static_cast<size_t>(kDecodeControlBytes);
        require_cuda(cudaMemset(workspace_->as<>(), 0, nodes), "cudaMemset");
        require_cuda(cudaMemset(workspace_->as<char>() + nodes, 0xFF, workspace_->bytes() - nodes), "cudaMemset");
        require_cuda(cudaDeviceSynchronize(), "cudaMemset");
    }

    const foveal::ForwardPlan& plan() const { return *plan_; }
    void launch(ForwardPointers pointers, cudaStream_t stream = nullptr) const {
        pointers.workspace = workspace_->as<>();
        pointers.workspace_bytes = workspace_->bytes();
        plan_->launch(pointers, stream);
    }
    void expect_clean() const {
        std::vector<uint8_t> control(static_cast<size_t>(kDecodeControlBytes));
        require_cuda(cudaMemcpy(control.data(), workspace_->as<>(), control.size(), cudaMemcpyDeviceToHost), "control");
        EXPECT_EQ(std::count(control.begin(), control.end(), 0), static_cast<int64_t>(control.size()))
            << "control words of the workspace are not zero again";
    }

   private:
    std::unique_ptr<foveal::ForwardPlan> plan_;
    std::optional<DeviceBuffer> workspace_;
};

inline void synchronize() { require_cuda(cudaDeviceSynchronize(), "decode"); }

inline ForwardPointers without_workspace(const foveal_forward_args& args) {
    ForwardPointers pointers = foveal::pointers_of(args);
    pointers.workspace = nullptr;
    pointers.workspace_bytes = 0;
    return pointers;
}

// Outputs of a run split over so many SMs; 0: not split.
inline std::vector<std::byte> decoded(CaseData& data, int32_t sms) {
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

inline std::vector<std::byte> decoded(const std::string& text, int32_t sms) {
    const auto data = on_gpu(text);
    return decoded(*data, sms);
}

}  // namespace foveal_testing
