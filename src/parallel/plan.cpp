#include "parallel/plan.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "backend/backends.hpp"
#include "parallel/arguments.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

size_t most_cells(const Schedule& schedule) {
    size_t most = 0;
    for (const Stretch& stretch : schedule.stretches) most = std::max(most, stretch.cells.size());
    return most;
}

void take_crew_regions(const Plan& plan, Allocation& from, Regions& regions) {
    const ForwardProblem& p = plan.problem.local;
    const HeadPart heads = plan.heads();
    const int64_t element = bytes_of(p.dtype), crews = plan.method.head_ranks;
    const int64_t rows_q = p.batch * plan.crew_rows_q(), rows_k = p.batch * plan.crew_rows_k();
    regions.crew_q = from.take(rows_q * heads.heads_q * p.head_dim, element);
    regions.crew_k = from.take(rows_k * heads.heads_k * p.head_dim, element);
    regions.crew_v = from.take(rows_k * heads.heads_k * p.head_dim_v, element);
    regions.crew_out = from.take(rows_q * heads.heads_q * p.head_dim_v, element);
    if (p.wants_lse) regions.crew_lse = from.take(rows_q * heads.heads_q, sizeof(float));
    regions.packed_q = from.take(p.batch * p.rows_q * p.heads_q * p.head_dim, element);
    regions.packed_k = from.take(p.batch * p.rows_k * crews * heads.heads_k * p.head_dim, element);
    regions.packed_v = from.take(p.batch * p.rows_k * crews * heads.heads_k * p.head_dim_v, element);
    regions.packed_out = from.take(p.batch * p.rows_q * p.heads_q * p.head_dim_v, element);
}

void take_part_regions(const Plan& plan, Allocation& from, Regions& regions) {
    const ForwardProblem& p = plan.problem.local;
    const auto cells = static_cast<int64_t>(most_cells(plan.schedule));
    const int64_t rows = p.batch * plan.crew_rows_q() * plan.heads().heads_q;
    if (cells > 1) {
        const int64_t parts = std::min<int64_t>(cells, kParts);
        regions.parts = from.take(parts * rows * p.head_dim_v, bytes_of(plan.part_dtype));
        regions.part_lses = from.take(parts * rows, sizeof(float));
    }
    if (cells > kParts) {
        regions.sums = from.take(2 * rows * p.head_dim_v, sizeof(float));
        regions.sum_lses = from.take(2 * rows, sizeof(float));
    }
}

Regions regions_of(const Plan& plan) {
    const ForwardProblem& p = plan.problem.local;
    const HeadPart heads = plan.heads();
    const int64_t element = bytes_of(p.dtype);
    Regions regions;
    Allocation from;
    regions.zeros = from.take(kMostSequences, sizeof(int32_t));
    int64_t buffer_rows = 0;
    for (const Hop& hop : plan.schedule.hops) buffer_rows = std::max(buffer_rows, hop.buffer_rows);
    regions.keys = from.take(p.batch * buffer_rows * heads.heads_k * p.head_dim, element);
    regions.values = from.take(p.batch * buffer_rows * heads.heads_k * p.head_dim_v, element);
    if (plan.method.head_ranks > 1) take_crew_regions(plan, from, regions);
    if (plan.problem.gradients)
        take_gradient_regions(plan, from, regions.gradients);
    else
        take_part_regions(plan, from, regions);
    regions.total_bytes = from.end();
    return regions;
}

// Whatever this rank has that others need, in the order in which they ask for it.
std::vector<std::vector<Send>> sends_of(const Plan& plan, const std::vector<Schedule>& of_crew) {
    const auto crews = static_cast<int32_t>(of_crew.size());
    std::vector<std::vector<Send>> sends(plan.schedule.hops.size());
    for (size_t h = 0; h < sends.size(); ++h) {
        for (int32_t receiver = 0; receiver < crews; ++receiver)
            for (const Transfer& t : of_crew[static_cast<size_t>(receiver)].hops[h].transfers)
                if (t.source == plan.crew()) sends[h].push_back({receiver, t.source_row, t.rows});
    }
    return sends;
}

bool divides_heads(const Problem& problem, int32_t head_ranks) {
    const ForwardProblem& p = problem.local;
    return problem.ranks % head_ranks == 0 && p.heads_q % head_ranks == 0 && p.heads_k > 0 &&
           (p.heads_k % head_ranks == 0 || head_ranks % p.heads_k == 0);
}

std::vector<Method> ulysses_methods(const foveal_parallel_args& args, const Problem& problem) {
    std::vector<Method> methods;
    const bool has_matrix = args.forward->bias.rank != 0 || args.forward->mask.rank != 0;
    for (int32_t size = 2; size <= problem.ranks && !has_matrix; ++size)
        if (divides_heads(problem, size) && (args.head_ranks == 0 || args.head_ranks == size))
            methods.push_back({false, size});
    if (!methods.empty() || args.method != FOVEAL_PARALLEL_ULYSSES) return methods;
    if (problem.ranks == 1) return {{false, 1}};
    throw Error(FOVEAL_UNSUPPORTED,
                has_matrix ? "method is ulysses, and a bias or a mask is present, whose rows lie on one rank; ring and "
                             "all_gather take them"
                           : "method is ulysses: of " + std::to_string(problem.ranks) + " ranks, head_ranks " +
                                 std::to_string(args.head_ranks) + " (0: any) do not divide " +
                                 std::to_string(problem.local.heads_q) + " query heads and " +
                                 std::to_string(problem.local.heads_k) + " K/V heads");
}

std::vector<Method> methods_of(const foveal_parallel_args& args, const Problem& problem) {
    std::vector<Method> methods;
    const bool any = args.method == FOVEAL_PARALLEL_AUTO;
    if (args.head_ranks > 1 && args.method != FOVEAL_PARALLEL_ULYSSES)
        refuse("head_ranks is " + std::to_string(args.head_ranks) + "; it belongs to the method ulysses");
    if (any || args.method == FOVEAL_PARALLEL_RING) methods.push_back({false, 1});
    if (any || args.method == FOVEAL_PARALLEL_ALL_GATHER) methods.push_back({true, 1});
    if (any || args.method == FOVEAL_PARALLEL_ULYSSES)
        for (const Method& method : ulysses_methods(args, problem)) methods.push_back(method);
    return methods;
}

// A bias of one row beside one row of q may be that row's own or shared by all ranks' rows: then nobody knows whether
// its gradient is a sum over ranks. Every rank refuses that, or those that do not would wait for the others.
void require_rows_that_tell(const Problem& problem) {
    for (int32_t rank = 0; rank < problem.ranks && problem.ranks > 1; ++rank)
        if (problem.q.rows_of_rank[static_cast<size_t>(rank)] == 1)
            throw Error(FOVEAL_UNSUPPORTED, "gradients.dbias is present and rank " + std::to_string(rank) +
                                                " has one row of q, which does not tell whether all ranks share the "
                                                "row of its bias; place more rows there, or none");
}

// The backend has to take every cell, before anything is sent.
void require_supported(const Plan& plan, const foveal_forward_args& local) {
    const Backend& backend = backend_of(local.backend);
    const HeadPart heads = plan.heads();
    static constexpr int32_t kNoOffset = 0;
    for (const Stretch& stretch : plan.schedule.stretches) {
        for (const Cell& cell : stretch.cells) {
            foveal_forward_args args = cell_args(plan, local, stretch, cell, true, &kNoOffset);
            const auto rows = [&](foveal_tensor& t, int64_t count, int64_t head_count) {
                // of a crew's heads: in the workspace
                if (plan.method.head_ranks > 1)
                    t = packed_tensor(nullptr, t.dtype, 0, {t.shape[0], count, head_count, t.shape[3]});
                t.shape[1] = count;
            };
            rows(args.q, stretch.rows, heads.heads_q);
            rows(args.out, stretch.rows, heads.heads_q);
            rows(args.k, cell.keys, heads.heads_k);
            rows(args.v, cell.keys, heads.heads_k);
            args.lse = {};
            backend.check_supported(validate(args));
        }
    }
}

}  // namespace

DType part_dtype_of(const foveal_forward_args& local) {
    foveal_forward_args plain = local;
    plain.bias = plain.mask = plain.alibi_slopes = {};
    plain.chunk = 0;
    plain.out.dtype = FOVEAL_F32;
    try {
        backend_of(local.backend).check_supported(validate(plain));
        return DType::f32;
    } catch (const Error&) {  // what else may be wrong, the cells show
        return dtype_of(local.q);
    }
}

foveal_tensor part_of_matrix(foveal_tensor t, int64_t row, int64_t rows, int64_t first, int64_t keys) {
    if (t.rank == 0) return t;
    const int64_t element_bytes = t.dtype == FOVEAL_BOOL ? 1 : bytes_of(dtype_of(t));
    const auto cut = [&](int dimension, int64_t begin, int64_t size) {
        if (dimension < 0 || t.shape[dimension] == 1) return;
        t.shape[dimension] = size;
        if (t.data != nullptr) t.data = static_cast<std::byte*>(t.data) + begin * t.stride[dimension] * element_bytes;
    };
    cut(t.rank - 1, first, keys);
    cut(t.rank - 2, row, rows);
    return t;
}

HeadPart head_part(const Problem& problem, const Method& method, int32_t member) {
    const ForwardProblem& p = problem.local;
    HeadPart part;
    part.heads_q = p.heads_q / method.head_ranks;
    part.first_q = member * part.heads_q;
    part.heads_k = std::max<int64_t>(p.heads_k / method.head_ranks, std::min<int64_t>(p.heads_k, 1));
    part.first_k = p.heads_q == 0 ? 0 : part.first_q / p.heads_per_kv();
    return part;
}

CrewSchedules schedule_crews(const Problem& problem, const Method& method) {
    CrewSchedules crews{
        layout_of_crews(problem.q, method.head_ranks), layout_of_crews(problem.k, method.head_ranks), {}};
    for (int32_t crew = 0; crew < problem.ranks / method.head_ranks; ++crew)
        crews.of_crew.push_back(method.gathers ? all_gather_schedule(crews.q, crews.k, problem.visibility, crew)
                                               : ring_schedule(crews.q, crews.k, problem.visibility, crew));
    return crews;
}

foveal_forward_args cell_args(const Plan& plan, const foveal_forward_args& local, const Stretch& stretch,
                              const Cell& cell, bool first, const int32_t* offset) {
    const HeadPart heads = plan.heads();
    foveal_forward_args args = local;
    args.alignment = FOVEAL_TOP_LEFT;
    args.window_left = cell.left;
    args.window_right = cell.right;
    args.chunk = 0;
    const auto take_heads = [&](foveal_tensor& t) {
        if (t.rank == 0) return;
        t.shape[t.rank - 1] = heads.heads_q;
        if (t.data != nullptr) t.data = static_cast<float*>(t.data) + heads.first_q * t.stride[t.rank - 1];
    };
    take_heads(args.alibi_slopes);
    if (args.alibi_slopes.rank == 2 && args.q.shape[0] == 1) {  // a row for each document
        if (args.alibi_slopes.data != nullptr)
            args.alibi_slopes.data =
                static_cast<float*>(args.alibi_slopes.data) + stretch.sequence * args.alibi_slopes.stride[0];
        args.alibi_slopes.shape[0] = 1;
    }
    take_heads(args.sinks);
    if (!first) args.sinks = {};
    args.bias = part_of_matrix(local.bias, stretch.row, stretch.rows, cell.position, cell.keys);
    args.mask = part_of_matrix(local.mask, stretch.row, stretch.rows, cell.position, cell.keys);
    if (args.alibi_slopes.rank == 0) return args;
    // Distances count from where the queries stand: then windows do as well.
    args.alignment = FOVEAL_BOTTOM_RIGHT;
    args.window_left = plan.problem.visibility.left;
    args.window_right = plan.problem.visibility.right;
    args.query_offset = {const_cast<int32_t*>(offset), FOVEAL_I32, 1, {plan.problem.local.batch}, {0}};
    return args;
}

Plan make_plan(const foveal_parallel_args& args, const foveal_backward_args* gradients) {
    Plan plan;
    plan.problem = problem_of(args);
    const foveal_forward_args local = local_args(*args.forward);
    if (gradients != nullptr) {
        plan.problem.gradients = gradient_problem(local_gradients(*gradients, local));
        if (plan.problem.gradients->wants_dbias) require_rows_that_tell(plan.problem);
    }
    for (const Method& method : methods_of(args, plan.problem))
        plan.considered.push_back(estimate(plan.problem, method));
    std::ranges::stable_sort(plan.considered, {}, &Estimate::seconds);
    plan.method = plan.considered[0].method;
    CrewSchedules crews = schedule_crews(plan.problem, plan.method);
    plan.q = std::move(crews.q);
    plan.k = std::move(crews.k);
    plan.moves_q = moves_of(plan.problem.q, plan.q, plan.crew(), plan.method.head_ranks);
    plan.moves_k = moves_of(plan.problem.k, plan.k, plan.crew(), plan.method.head_ranks);
    plan.schedule = crews.of_crew[static_cast<size_t>(plan.crew())];
    plan.sends = sends_of(plan, crews.of_crew);
    plan.part_dtype = part_dtype_of(local);
    plan.regions = regions_of(plan);
    if (local.alibi_slopes.rank != 0)
        for (const Stretch& stretch : plan.schedule.stretches)
            for (const Cell& cell : stretch.cells) plan.offsets.push_back(static_cast<int32_t>(cell.offset));
    require_supported(plan, local);
    return plan;
}

}  // namespace foveal::parallel
