#include "sm90/varlen/plan.hpp"

#include <algorithm>
#include <sstream>

#include "sm90/decode/support.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/support.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

std::string rows_text(const DecodeChoice& choice) {
    if (choice.most_rows == 1) return "1 row";
    return std::to_string(choice.least_rows) + " to " + std::to_string(choice.most_rows) + " rows";
}

// As lines that go on from one of the plan's, whose name is the first of them.
void continue_lines(std::ostream& out, const std::string& lines) {
    std::istringstream in(lines);
    for (std::string line; std::getline(in, line);) out << "           " << line << '\n';
}

}  // namespace

Sm90VarlenPlan::Sm90VarlenPlan(const ForwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits)
    : ForwardPlan(problem, FOVEAL_BACKEND_SM90, device), traits_(traits) {
    if (may_have_many_rows(problem)) {
        ForwardSchedule schedule = schedule_of(problem, choice_of(problem), traits);
        schedule.decoded_rows = few_rows_of(problem);
        forward_ = prepare_forward(problem, schedule);
    }
    bool beside = forward_ && forward_->schedule.grid > 0;
    int64_t counts = 0, nodes = kDecodeControlBytes;
    for (const DecodeChoice& choice : decode_choices_of_varlen(problem)) {
        PreparedDecode decode = prepare_decode(problem, choice, traits);
        decode.counts = counts;
        decode.nodes = nodes;
        decode.params.beside = beside;
        beside = true;
        counts += kDecodeCounts * 4;
        nodes += decode.schedule.node_bytes;
        workspace_bytes_ = std::max(workspace_bytes_, decode.workspace_end());
        decodes_.push_back(decode);
    }
}

std::string Sm90VarlenPlan::describe() const {
    std::ostringstream out;
    out << foveal::describe(problem());
    if (forward_) describe_forward(out, problem(), *forward_, traits_.sms);
    out << "decode     sequences of few rows, in launches of their own\n";
    for (const PreparedDecode& decode : decodes_) {
        std::ostringstream lines;
        lines << "of " << rows_text(decode.schedule.choice) << ":\n";
        describe_decode(lines, problem(), decode, traits_.sms);
        continue_lines(out, lines.str());
    }
    out << "workspace  " << workspace_bytes() << " bytes\n"
        << "bound      the lengths are on the device\n";
    return out.str();
}

// Kernels that write different rows run side by side, the others one after the other.
void Sm90VarlenPlan::launch(const ForwardPointers& pointers, void* stream) const {
    check_pointers(pointers);
    check_workspace(pointers, workspace_bytes());
    if (forward_ && forward_->schedule.grid > 0) launch_forward(problem(), *forward_, device(), pointers, stream);
    for (const PreparedDecode& decode : decodes_)
        if (decode.schedule.whole_grid > 0) launch_decode(problem(), decode, device(), pointers, stream);
}

std::unique_ptr<ForwardPlan> plan_varlen(const ForwardProblem& problem, int32_t device) {
    return std::make_unique<Sm90VarlenPlan>(problem, device, traits_of(device));
}

}  // namespace foveal::sm90
