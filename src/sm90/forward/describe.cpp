// What a forward plan says of itself.
#include <algorithm>
#include <sstream>
#include <string>

#include "problem/work.hpp"
#include "sm90/forward/plan.hpp"

namespace foveal::sm90 {
namespace {

void describe_kernel(std::ostream& out, const ForwardProblem& p, const PreparedForward& kernel) {
    const ForwardTile& tile = kernel.tile();
    out << "kernel     sm90 forward, " << foveal::name_of(p.dtype) << ", d up to " << tile.head_dim << ", d_v up to "
        << tile.head_dim_v << ", " << name_of(kernel.schedule.choice.variant) << '\n'
        << "tile       " << tile.rows() << " rows (" << tile.consumers << " warpgroups "
        << (tile.shares_rows ? "that split the columns of the output" : "of 64 rows") << ") x " << tile.keys
        << " keys, " << tile.stages << " stages; limited by " << kernel.entry().limited_by << '\n';
}

void describe_loads(std::ostream& out, const ForwardProblem& p, const PreparedForward& kernel) {
    if (!kernel.schedule.choice.any_keys) return;
    const int32_t rows = box_rows_of(p, kernel.tile().keys);
    out << "loads      k and v ";
    if (kernel.schedule.choice.dequantises)
        out << "row by row, by threads, which turn e4m3 into q's type\n";
    else if (rows == 0)
        out << "row by row, by threads: a page has no box of " << kLeastBoxRows
            << " rows or more for the copy engine\n";
    else
        out << "by the copy engine, in boxes of " << rows << " rows\n";
}

void describe_resources(std::ostream& out, const ForwardProblem& p, const PreparedForward& kernel, int32_t sms) {
    const ForwardSchedule& schedule = kernel.schedule;
    const ForwardTile& tile = kernel.tile();
    const int64_t heads = std::min<int64_t>(1 << schedule.heads_log2, p.heads_per_kv());
    const char* where = schedule.heads_log2 == 0 || !p.varlen ? ""
                        : schedule.least_saved_tiles > 0      ? " in sequences that have fewer tiles then"
                                                              : " in sequences that do not have more tiles then";
    out << "           rows of " << (heads == 1 ? "one head" : std::to_string(heads) + " heads") << where
        << "; warpgroups without rows pass over tiles of " << schedule.passed_over_blocks << " or more K/V blocks\n"
        << "grid       " << schedule.grid << " CTAs of " << tile.threads() << " threads on " << sms << " SMs\n"
        << "shared     " << shared_bytes(tile) << " bytes a CTA\n"
        << "registers  " << tile.producer_registers << " a producer thread, " << tile.consumer_registers
        << " a consumer thread\n";
}

void describe_order(std::ostream& out, const ForwardProblem& p, const ForwardSchedule& schedule) {
    const OrderChoice& order = schedule.order;
    const char* direction = schedule.last_rows_first ? "last" : "first";
    out << "order      ";
    if (!p.varlen) {
        out << order.section_units << " heads of K a section, " << order.sections
            << " sections (the last has what is left), " << direction << " rows first; busiest CTA at "
            << order.imbalance << " of the mean\n";
        return;
    }
    out << "sections of " << order.section_keys << " keys, " << direction << " rows first, ";
    if (order.bundle == 0)
        out << "in serpentines\n";
    else
        out << "dealt out to bundles of " << order.bundle << " CTAs by what they have computed\n";
}

void describe_bound(std::ostream& out, const ForwardProblem& p, const Card* card) {
    if (p.varlen || p.keys == KeyForm::varlen || p.has_seqused_q || p.has_seqused_k || p.has_query_offset) {
        out << "bound      the lengths or offsets are on the device\n";
        return;
    }
    const UsefulWork work = useful_work_of_dense(p);
    out << "bound      ";
    if (card == nullptr || !card->sustained_flops_per_second || !card->sustained_copy_bytes_per_second) {
        out << "not known, since no rates are measured of " << (card == nullptr ? "this GPU" : card->name) << ": "
            << work.flops / 1e9 << " GFLOP, " << work.bytes / 1e6 << " MB\n";
        return;
    }
    const double compute_us = work.flops / *card->sustained_flops_per_second * 1e6,
                 memory_us = work.bytes / *card->sustained_copy_bytes_per_second * 1e6;
    out << std::max(compute_us, memory_us) << " us on an " << card->name << ": " << work.flops / 1e9 << " GFLOP ("
        << compute_us << " us), " << work.bytes / 1e6 << " MB (" << memory_us << " us)\n";
}

}  // namespace

void describe_forward(std::ostream& out, const ForwardProblem& problem, const PreparedForward& kernel, int32_t sms) {
    describe_kernel(out, problem, kernel);
    describe_loads(out, problem, kernel);
    describe_resources(out, problem, kernel, sms);
    describe_order(out, problem, kernel.schedule);
}

std::string Sm90ForwardPlan::describe() const {
    std::ostringstream out;
    out << foveal::describe(problem());
    describe_forward(out, problem(), kernel_, traits_.sms);
    out << "workspace  " << workspace_bytes() << " bytes\n";
    describe_bound(out, problem(), traits_.card);
    return out.str();
}

}  // namespace foveal::sm90
