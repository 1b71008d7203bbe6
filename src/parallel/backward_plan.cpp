// What a plan of gradients has that one of a forward call has not: the gradients that are asked, and where their sums
// lie.
#include <algorithm>
#include <string>

#include "parallel/plan.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

// Rows of k that come back to a crew in hop `hop`.
int64_t rows_sent(const Plan& plan, size_t hop) {
    int64_t rows = 0;
    for (const Send& send : plan.sends[hop]) rows += send.rows;
    return rows;
}

void take_crew_regions(const Plan& plan, Allocation& from, GradientRegions& regions) {
    const ForwardProblem& p = plan.problem.local;
    const BackwardProblem& gradients = *plan.problem.gradients;
    const HeadPart heads = plan.heads();
    const int64_t rows_q = p.batch * plan.crew_rows_q(), element = bytes_of(p.dtype);
    const int64_t blocks_k = p.batch * p.rows_k * plan.method.head_ranks * heads.heads_k;
    regions.crew_dout = from.take(rows_q * heads.heads_q * p.head_dim_v, element);
    if (gradients.has_dlse) regions.crew_dlse = from.take(rows_q * heads.heads_q, sizeof(float));
    regions.packed_dout = from.take(p.batch * p.rows_q * p.heads_q * p.head_dim_v, element);
    if (gradients.wants_dq) regions.packed_dq = from.take(p.batch * p.rows_q * p.heads_q * p.head_dim, sizeof(float));
    if (gradients.wants_dk) regions.packed_dk = from.take(blocks_k * p.head_dim, sizeof(float));
    if (gradients.wants_dv) regions.packed_dv = from.take(blocks_k * p.head_dim_v, sizeof(float));
}

// dbias is as large as the bias, which has the keys of all ranks.
void check_shape_of_dbias(const foveal_tensor& dbias, const foveal_tensor& bias) {
    const Argument a{"gradients.dbias", dbias}, of{"forward.bias", bias};
    require_known_rank(a);
    if (!a.present()) return;
    if (!of.present()) refuse(a.text() + " is present but " + of.text() + " is absent");
    require_rank(a, bias.rank, "forward.bias's rank");
    for (int i = 0; i < bias.rank; ++i) require_dim(a, i, bias.shape[i], of.dim(i).c_str());
}

}  // namespace

foveal_backward_args local_gradients(const foveal_backward_args& given, const foveal_forward_args& local) {
    foveal_backward_args gradients = given;
    gradients.forward = &local;
    if (given.workspace != nullptr || given.workspace_bytes != 0)
        throw Error(FOVEAL_UNSUPPORTED,
                    "gradients.workspace is present; the workspace of foveal_parallel_args serves all");
    for (foveal_tensor* t : {&gradients.dout, &gradients.dq, &gradients.dk, &gradients.dv}) add_batch(*t, 3);
    add_batch(gradients.dlse, 2);
    return gradients;
}

BackwardProblem gradient_problem(const foveal_backward_args& gradients) {
    if (gradients.forward->backend != FOVEAL_BACKEND_CPU)
        throw Error(FOVEAL_UNSUPPORTED,
                    "forward.backend is sm90; gradients over several ranks are sums in f32, which the cpu backend "
                    "writes and sm90 does not yet");
    const foveal_tensor& slopes = gradients.forward->alibi_slopes;
    foveal_forward_args plain = plain_args(*gradients.forward);
    foveal_backward_args all = gradients;
    check_shape_of_dbias(gradients.dbias, gradients.forward->bias);
    if (gradients.dbias.rank != 0) {  // of as many keys as this rank has
        const auto part = [&](const foveal_tensor& t) {
            return part_of_matrix(t, 0, plain.q.shape[1], 0, plain.k.shape[1]);
        };
        plain.bias = part(gradients.forward->bias);
        all.dbias = part(gradients.dbias);
    }
    all.forward = &plain;
    if (all.dalibi_slopes.rank == slopes.rank && all.dalibi_slopes.shape[0] == slopes.shape[0])
        all.dalibi_slopes.shape[0] = plain.alibi_slopes.shape[0];
    return validate(all);
}

void take_gradient_regions(const Plan& plan, Allocation& from, GradientRegions& regions) {
    const ForwardProblem& p = plan.problem.local;
    const BackwardProblem& gradients = *plan.problem.gradients;
    const HeadPart heads = plan.heads();
    int64_t cell_rows = 0, cell_keys = 0, hop_rows = 0, home_rows = 0;
    for (const Stretch& stretch : plan.schedule.stretches) {
        cell_rows = std::max(cell_rows, stretch.rows);
        for (const Cell& cell : stretch.cells) cell_keys = std::max(cell_keys, cell.keys);
    }
    for (size_t hop = 0; hop < plan.schedule.hops.size(); ++hop) {
        hop_rows = std::max(hop_rows, plan.schedule.hops[hop].buffer_rows);
        home_rows = std::max(home_rows, rows_sent(plan, hop));
    }
    const auto take = [&](int64_t rows, int64_t row_heads, int64_t channels) {
        return from.take(p.batch * rows * row_heads * channels, sizeof(float));
    };
    if (gradients.wants_dq) {
        regions.dq = take(plan.crew_rows_q(), heads.heads_q, p.head_dim);
        regions.cell_dq = take(cell_rows, heads.heads_q, p.head_dim);
    }
    const auto take_keys = [&](int64_t channels, Region& sums, Region& cell, Region& hop, Region& home) {
        sums = take(plan.crew_rows_k(), heads.heads_k, channels);
        cell = take(cell_keys, heads.heads_k, channels);
        hop = take(hop_rows, heads.heads_k, channels);
        home = take(home_rows, heads.heads_k, channels);
    };
    if (gradients.wants_dk) take_keys(p.head_dim, regions.dk, regions.cell_dk, regions.hop_dk, regions.home_dk);
    if (gradients.wants_dv) take_keys(p.head_dim_v, regions.dv, regions.cell_dv, regions.hop_dv, regions.home_dv);
    if (plan.method.head_ranks > 1) take_crew_regions(plan, from, regions);
}

}  // namespace foveal::parallel
