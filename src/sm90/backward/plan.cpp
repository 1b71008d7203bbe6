#include "sm90/backward/plan.hpp"

#include <algorithm>
#include <sstream>

#include "sm90/backward/schedule.hpp"
#include "sm90/backward/sequences.hpp"
#include "sm90/backward/support.hpp"
#include "sm90/device.hpp"

namespace foveal::sm90 {
namespace {

// Upper bounds from the shapes alone: lengths are on the device.
int64_t most_tasks(const ForwardProblem& p) {
    const int64_t key_tiles =
        p.varlen ? p.rows_k / kBackwardKeys + p.batch : p.batch * ((p.rows_k + kBackwardKeys - 1) / kBackwardKeys);
    return key_tiles * p.heads_k;
}

int32_t tiles_of(int64_t rows, int32_t tile_rows) { return static_cast<int32_t>((rows + tile_rows - 1) / tile_rows); }

BiasSums bias_sums_of(const BackwardProblem& problem) {
    const ForwardProblem& p = problem.forward;
    const ScoreStrides& own = problem.dbias;
    BiasSums sums;
    sums.sequences = {static_cast<int32_t>(p.batch), own.batch != 0};
    sums.heads = {static_cast<int32_t>(p.heads_q), own.head != 0};
    sums.queries = {tiles_of(p.rows_q, kBackwardQueries), own.row != 0};
    sums.keys = {tiles_of(p.rows_k, kSumKeys), own.key != 0};
    sums.parts = sums.wanted_parts();
    return sums;
}

int64_t bias_elements(const ForwardProblem& p, const BiasSums& sums) {
    return int64_t{sums.sequences.results()} * sums.heads.results() * (sums.queries.own ? p.rows_q : 1) *
           (sums.keys.own ? p.rows_k : 1);
}

WorkspaceLayout layout_of(const BackwardProblem& problem, const BackwardTile& tile, int64_t slots,
                          const BiasSums& sums) {
    constexpr int64_t kAlignment = 256;
    WorkspaceLayout layout;
    const auto place = [&](int64_t count, int64_t element_bytes) {
        const int64_t at = layout.bytes;
        layout.bytes = (at + count * element_bytes + kAlignment - 1) / kAlignment * kAlignment;
        return at;
    };
    const int64_t units = problem.forward.heads_q * slots;
    layout.dq_sums = place(tile.is_wide ? 0 : units * kBackwardConsumers * tile.dq_elements(), sizeof(float));
    layout.neg_lse = place(units * kBackwardQueries, sizeof(float));
    layout.neg_delta = place(units * kBackwardQueries, sizeof(float));
    layout.sink_parts = place(problem.wants_dsinks ? units : 0, sizeof(float));
    layout.arrivals = place(units * kBackwardConsumers, sizeof(int32_t));
    layout.tasks = place(tile.is_wide ? 0 : most_tasks(problem.forward), sizeof(BackwardTask));
    layout.counts = place(2, sizeof(int32_t));
    layout.slope_parts = place(problem.wants_dalibi ? units : 0, sizeof(float));
    layout.bias_parts = place(
        problem.wants_dbias && sums.parts > 1 ? sums.parts * bias_elements(problem.forward, sums) : 0, sizeof(float));
    return layout;
}

// Where dbias or dalibi_slopes have elements.
void prepare_sums(const BackwardProblem& problem, PreparedBackward& prepared) {
    const ForwardProblem& p = problem.forward;
    const BiasSums& sums = prepared.bias_sums;
    if (problem.wants_dbias && bias_elements(p, sums) > 0) {
        prepared.bias_grid = sums.results() * sums.parts;
        if (sums.parts > 1) prepared.add_grid += tiles_of(bias_elements(p, sums), kFinishThreads);
    }
    if (!problem.wants_dalibi) return;
    prepared.slopes_grid = prepared.slots * static_cast<int32_t>(p.heads_q);
    prepared.add_grid += static_cast<int32_t>((problem.dalibi.batch != 0 ? p.batch : 1) * p.heads_q);
}

PreparedBackward prepared(const BackwardProblem& problem, int32_t sms) {
    const ForwardProblem& p = problem.forward;
    const auto batch = static_cast<int32_t>(p.batch), rows_q = static_cast<int32_t>(p.rows_q),
               rows_k = static_cast<int32_t>(p.rows_k), heads_q = static_cast<int32_t>(p.heads_q),
               heads_k = static_cast<int32_t>(p.heads_k);
    PreparedBackward prepared;
    prepared.tile_index = tile_index_of(problem);
    prepared.variant = variant_of(problem);
    prepared.slots = query_slots().count(p.varlen, batch, rows_q);
    if (problem.wants_dbias) prepared.bias_sums = bias_sums_of(problem);
    prepared.workspace = layout_of(problem, prepared.tile(), prepared.slots, prepared.bias_sums);
    prepare_sums(problem, prepared);
    const int32_t units = prepared.slots * heads_q, sinks = problem.wants_dsinks ? heads_q : 0;
    if (prepared.tile().is_wide) {
        prepared.prepare_grid = units;
        const int32_t keys_grid = Slots{kWideKeys}.count(p.varlen, batch, rows_k) * heads_k;
        if (prepared.tile().is_widest()) {
            prepared.widest_grids = {problem.wants_dk ? keys_grid : 0, problem.wants_dv ? keys_grid : 0,
                                     problem.wants_dq ? units : 0};
            prepared.finish_grid = sinks;
            return prepared;
        }
        if (problem.wants_dk || problem.wants_dv) prepared.keys_grid = keys_grid;
        if (problem.wants_dq) prepared.queries_grid = Slots{kWideQueries}.count(p.varlen, batch, rows_q) * heads_q;
        prepared.finish_grid = sinks;
        return prepared;
    }
    prepared.prepare_grid = batch * kListCtas + units;
    const bool wants_main = problem.wants_dq || problem.wants_dk || problem.wants_dv;
    if (wants_main && p.total_rows_q() > 0) prepared.grid = static_cast<int32_t>(std::min<int64_t>(sms, most_tasks(p)));
    prepared.finish_grid = sinks + (problem.wants_dq ? units : 0);
    return prepared;
}

void describe_kernels(std::ostream& out, const PreparedBackward& prepared) {
    const BackwardTile& tile = prepared.tile();
    if (tile.is_widest()) {
        out << "tile       " << kWideKeys << " keys or rows x " << kBackwardQueries << " a step\n"
            << "grid       dk " << prepared.widest_grids[0] << ", dv " << prepared.widest_grids[1] << ", dq "
            << prepared.widest_grids[2] << " CTAs of " << kBackwardThreads << " threads; before them "
            << prepared.prepare_grid << " of " << kPrepareThreads << '\n'
            << "shared     up to " << kWidestSharedBytes << " bytes a CTA\n";
        return;
    }
    if (tile.is_wide) {
        out << "tile       dk, dv: " << kWideKeys << " keys x " << kBackwardQueries
            << " rows a step; dq: " << kWideQueries << " rows x " << kWideKeys << " keys a step\n"
            << "grid       " << prepared.keys_grid << " and " << prepared.queries_grid << " CTAs of "
            << kBackwardThreads << " threads; before them " << prepared.prepare_grid << " of " << kPrepareThreads
            << '\n'
            << "shared     up to " << wide_shared_bytes(tile) << " bytes a CTA\n";
        return;
    }
    out << "tile       " << kBackwardKeys << " keys (" << kBackwardConsumers << " warpgroups of 64) x "
        << kBackwardQueries << " rows a step, " << tile.query_buffers << " stages of q, " << tile.dout_buffers
        << " of dout\n"
        << "grid       " << prepared.grid << " CTAs of " << kBackwardThreads << " threads; before it "
        << prepared.prepare_grid << " of " << kPrepareThreads << ", after it " << prepared.finish_grid << " of "
        << kFinishThreads << '\n'
        << "shared     " << shared_bytes(tile) << " bytes a CTA\n"
        << "order      groups of heads with up to " << kGroupTasks
        << " tasks; keys and rows in opposite directions, which change from group to group\n";
}

void describe_sums(std::ostream& out, const PreparedBackward& prepared) {
    if (prepared.bias_grid > 0)
        out << "dbias      " << prepared.bias_grid << " CTAs of " << kSumThreads << " threads, "
            << prepared.bias_sums.parts << " an element\n";
    if (prepared.slopes_grid > 0)
        out << "dalibi     " << prepared.slopes_grid << " CTAs of " << kSumThreads << " threads\n";
}

}  // namespace

Sm90BackwardPlan::Sm90BackwardPlan(const BackwardProblem& problem, int32_t device, const cuda::DeviceTraits& traits)
    : BackwardPlan(problem, FOVEAL_BACKEND_SM90, device), prepared_(prepared(problem, traits.sms)) {}

std::string Sm90BackwardPlan::describe() const {
    const BackwardTile& tile = prepared_.tile();
    std::ostringstream out;
    out << foveal::describe(problem()) << "kernel     sm90 backward, " << name_of(problem().forward.dtype)
        << ", d up to " << tile.head_dim
        << (tile.head_dim_v != tile.head_dim ? ", d_v up to " + std::to_string(tile.head_dim_v) : "")
        << (has_options(prepared_.variant) ? ", with score options" : "")
        << (drops_weights(prepared_.variant) ? ", with dropout" : "")
        << (tile.is_widest() ? ", dk, dv and dq apart\n"
            : tile.is_wide   ? ", dk and dv apart from dq\n"
                             : ", dq's sums in a fixed order\n");
    describe_kernels(out, prepared_);
    describe_sums(out, prepared_);
    out << "registers  " << tile.producer_registers << " a producer thread, " << tile.consumer_registers
        << " a consumer thread\n"
        << "workspace  " << workspace_bytes() << " bytes\n";
    return out.str();
}

void Sm90BackwardPlan::launch(const BackwardPointers& pointers, void* stream) const {
    require_workspace(pointers, workspace_bytes());
    check_pointers(pointers);
    launch_backward(problem(), prepared_, device(), pointers, stream);
}

std::unique_ptr<BackwardPlan> plan_backward(const BackwardProblem& problem, int32_t device) {
    check_backward_supported(problem);
    return std::make_unique<Sm90BackwardPlan>(problem, device, traits_of(device));
}

}  // namespace foveal::sm90
