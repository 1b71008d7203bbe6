// What a method costs, by a model of three rates, and what a plan says of itself. docs/parallel.md has the model.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "cards.hpp"
#include "parallel/plan.hpp"

namespace foveal::parallel {
namespace {

constexpr const Card& kCard = kCards[0];
// Assumed, not measured: one kernel after another.
constexpr double kLaunchSeconds = 4e-6;
// Measured on two H200s, 2026-11-29 (docs/parallel.md): what an exchange takes beside its bytes; and what parts cost
// over a plain call, because merging them takes the log-sum-exp (bench/options.py).
constexpr double kMessageSeconds = 50e-6;
constexpr double kPartCost = 1.07;
constexpr double kRowsOfTile = 128;

double d(int64_t n) { return static_cast<double>(n); }

// Bytes of one row: of this part's heads of k and v, and of q or out.
struct RowBytes {
    double keys, queries, outputs;
};

RowBytes row_bytes(const ForwardProblem& p, const HeadPart& heads) {
    const double element = d(bytes_of(p.dtype)) * d(p.batch);
    return {d(heads.heads_k) * d(p.head_dim + p.head_dim_v) * element, d(heads.heads_q) * d(p.head_dim) * element,
            d(heads.heads_q) * d(p.head_dim_v) * element};
}

// A launch, and at the tensor cores' rate its pairs, but no less than one tile of rows takes one of the SMs.
double seconds_of(const Cell& cell, const ForwardProblem& p, const HeadPart& heads) {
    const double flops_of_pair = 2 * d(p.head_dim + p.head_dim_v), rate = *kCard.sustained_flops_per_second;
    const double all = cell.pairs * flops_of_pair * d(heads.heads_q) * d(p.batch) / rate;
    const double tile = std::min(kRowsOfTile * d(cell.keys), cell.pairs) * flops_of_pair * kCard.sms / rate;
    return kLaunchSeconds + std::max(all, tile);
}

// Reading the parts and writing what they become; with more than kParts, f32 sums on the way.
double merging_seconds(const Stretch& stretch, const RowBytes& bytes) {
    const double parts = d(static_cast<int64_t>(stretch.cells.size()));
    if (parts <= 1) return 0;
    double copied = parts + 1, launches = 1;
    if (parts > kParts) {
        const double folds = std::ceil(parts / kParts);
        copied = parts + folds * 2 + (folds - 1) * 6 + 3;
        launches = 2 * folds;
    }
    return launches * kLaunchSeconds +
           copied * bytes.outputs * d(stretch.rows) / *kCard.sustained_copy_bytes_per_second;
}

struct Traffic {
    double sent = 0, received = 0, copied = 0;  // bytes; copied: of this rank's own
    double seconds(double link) const {
        const double most = std::max(sent, received);
        return (most > 0 ? kMessageSeconds + most / link : 0) + 2 * copied / *kCard.sustained_copy_bytes_per_second;
    }
};

// [crews][hops]
std::vector<std::vector<Traffic>> traffic_of(const CrewSchedules& crews, const RowBytes& bytes) {
    std::vector<std::vector<Traffic>> traffic;
    for (const Schedule& schedule : crews.of_crew) traffic.emplace_back(schedule.hops.size());
    for (size_t crew = 0; crew < crews.of_crew.size(); ++crew) {
        for (size_t h = 0; h < crews.of_crew[crew].hops.size(); ++h) {
            for (const Transfer& t : crews.of_crew[crew].hops[h].transfers) {
                const double size = d(t.rows) * bytes.keys;
                const auto source = static_cast<size_t>(t.source);
                (source == crew ? traffic[crew][h].copied : traffic[crew][h].received) += size;
                if (source != crew) traffic[source][h].sent += size;
            }
        }
    }
    return traffic;
}

// One crew. An exchange beside kernels is not hidden: it holds some of the SMs until it has ended, and the kernel's
// CTAs of those, whose tiles are dealt out beforehand, begin then.
Estimate simulate(const Schedule& schedule, const std::vector<Traffic>& traffic, const Problem& problem,
                  const HeadPart& heads, const RowBytes& bytes) {
    Estimate result;
    for (const Stretch& stretch : schedule.stretches) {
        const double cost = stretch.cells.size() > 1 && !problem.local.wants_lse ? kPartCost : 1;
        for (const Cell& cell : stretch.cells) result.compute += cost * seconds_of(cell, problem.local, heads);
        result.compute += merging_seconds(stretch, bytes);
    }
    for (const Traffic& hop : traffic) {
        result.communication += hop.seconds(problem.link_bytes_per_second);
        result.bytes += hop.received;
    }
    result.seconds = result.compute + result.communication;
    return result;
}

// Rows for heads and back: packing, exchange, unpacking.
void add_exchange(const Problem& problem, const HeadPart& heads, int32_t head_ranks, Estimate& result) {
    if (head_ranks == 1) return;
    const RowBytes bytes = row_bytes(problem.local, heads);
    double rows_q = 0, rows_k = 0;
    for (const int64_t rows : problem.q.rows_of_rank) rows_q = std::max(rows_q, d(rows));
    for (const int64_t rows : problem.k.rows_of_rank) rows_k = std::max(rows_k, d(rows));
    const double out = rows_q * bytes.outputs, in = rows_q * bytes.queries + rows_k * bytes.keys;
    const Traffic there{in * (head_ranks - 1), in * (head_ranks - 1), in * head_ranks};
    const Traffic back{out * (head_ranks - 1), out * (head_ranks - 1), out * head_ranks};
    const double seconds = there.seconds(problem.link_bytes_per_second) + back.seconds(problem.link_bytes_per_second) +
                           3 * head_ranks * kLaunchSeconds;
    result.seconds += seconds;
    result.communication += seconds;
    result.bytes += there.received + back.received;
}

std::string name_of(const Method& method, int32_t ranks) {
    if (method.gathers) return "all_gather";
    if (method.head_ranks == 1) return "ring";
    const std::string ulysses = "ulysses of " + std::to_string(method.head_ranks);
    return method.head_ranks == ranks ? ulysses : ulysses + ", ring of " + std::to_string(ranks / method.head_ranks);
}

std::string fixed(double value, int decimals) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", decimals, value);
    return text;
}

std::string line_of(const Estimate& e, int32_t ranks) {
    std::string name = name_of(e.method, ranks);
    name.resize(std::max<size_t>(name.size(), 26), ' ');
    return name + fixed(e.seconds * 1e3, 3) + " ms: kernels " + fixed(e.compute * 1e3, 3) + ", links " +
           fixed(e.communication * 1e3, 3) + "; " + fixed(e.bytes / 1e6, 1) + " MB received\n";
}

}  // namespace

Estimate estimate(const Problem& problem, const Method& method) {
    const CrewSchedules crews = schedule_crews(problem, method);
    const HeadPart heads = head_part(problem, method, 0);
    const RowBytes bytes = row_bytes(problem.local, heads);
    const std::vector<std::vector<Traffic>> traffic = traffic_of(crews, bytes);
    Estimate slowest;
    for (size_t crew = 0; crew < crews.of_crew.size(); ++crew) {
        const Estimate one = simulate(crews.of_crew[crew], traffic[crew], problem, heads, bytes);
        const double most = std::max(slowest.bytes, one.bytes);
        if (one.seconds >= slowest.seconds) slowest = one;
        slowest.bytes = most;
    }
    slowest.method = method;
    add_exchange(problem, heads, method.head_ranks, slowest);
    return slowest;
}

std::string describe(const Plan& plan) {
    const Problem& problem = plan.problem;
    std::string text = "rank       " + std::to_string(problem.rank) + " of " + std::to_string(problem.ranks) + ": q " +
                       std::to_string(problem.local.rows_q) + " rows, k " + std::to_string(problem.local.rows_k) + "\n";
    text += "model      " + fixed(*kCard.sustained_flops_per_second / 1e12, 0) + " TFLOP/s, links " +
            fixed(problem.link_bytes_per_second / 1e9, 0) + " GB/s each direction; the slowest rank\n";
    const char* label = "method     ";
    for (const Estimate& e : plan.considered) {
        text += label + line_of(e, problem.ranks);
        label = "not        ";
    }
    if (problem.gradients) text += "gradients  methods as of the forward call, whose times these are; sums in f32\n";
    size_t cells = 0, merges = 0;
    for (const Stretch& stretch : plan.schedule.stretches) {
        cells += stretch.cells.size();
        if (stretch.cells.size() > 1) ++merges;
    }
    text += "computes   " + std::to_string(cells) + " problems, " + std::to_string(plan.schedule.stretches.size()) +
            " blocks of rows, of which " + std::to_string(merges) +
            (problem.gradients ? " are summed\n" : " are merged\n");
    for (size_t h = 0; h < plan.schedule.hops.size(); ++h) {
        const Hop& hop = plan.schedule.hops[h];
        int64_t sent = 0;
        for (const Send& send : plan.sends[h]) sent += send.rows;
        if (hop.buffer_rows > 0 || sent > 0)
            text += "hop        " + std::to_string(h) + ": " + std::to_string(hop.buffer_rows) + " rows in, " +
                    std::to_string(sent) + " out\n";
    }
    const bool has_parts = merges > 0 && !problem.gradients;
    if (has_parts && plan.part_dtype != problem.local.dtype)
        text += "parts      f32, rounded once merged\n";
    else if (has_parts)
        text += "parts      " + foveal::name_of(plan.part_dtype) + ", merged in f32\n";
    return text + "workspace  " + std::to_string(plan.regions.total_bytes) + " bytes\n";
}

}  // namespace foveal::parallel
