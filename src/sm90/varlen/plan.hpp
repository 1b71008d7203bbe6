// The plan of a varlen q on sm90 over keys that are not packed as it is, of whose sequences only the device knows which
// are chunks of a prompt and which a few rows that decode: one call launches the forward kernel and the decode kernel,
// and each takes the sequences whose numbers of rows are its own. Which those are follows from the heads, the type and
// the options, so a sequence has the same bits alone, in any batch, and as a dense q.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/plan.hpp"
#include "cuda/traits.hpp"
#include "sm90/decode/plan.hpp"
#include "sm90/forward/plan.hpp"

namespace foveal::sm90 {

class Sm90VarlenPlan final : public ForwardPlan {
   public:
    // The decode kernel has a part of it (decode_choices_of_varlen()).
    Sm90VarlenPlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits);

    std::string describe() const override;
    int64_t workspace_bytes() const override { return workspace_bytes_; }
    void launch(const ForwardPointers& pointers, void* stream) const override;

    // None: the host knows that all sequences are few rows.
    const std::optional<PreparedForward>& forward() const { return forward_; }
    const std::vector<PreparedDecode>& decodes() const { return decodes_; }

   private:
    const cuda::DeviceTraits traits_;
    std::optional<PreparedForward> forward_;
    std::vector<PreparedDecode> decodes_;
    int64_t workspace_bytes_ = 0;
};

// Of such a problem. device -1: a generic H200.
std::unique_ptr<ForwardPlan> plan_varlen(const ForwardProblem& problem, int32_t device);

}  // namespace foveal::sm90
