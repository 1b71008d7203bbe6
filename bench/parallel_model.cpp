// parallel_model [GB/s]: what the model of a plan over ranks says of each method, as a table of markdown;
// docs/parallel.md has it for NVLink's 360 GB/s each direction. No GPU is asked.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "parallel/plan.hpp"

namespace {

using foveal::parallel::Estimate;
using foveal::parallel::Plan;

struct Mask {
    const char* name;
    int64_t left, right;
    foveal_placement placement;
};

constexpr int64_t kHeadsQ = 32, kHeadsK = 8, kHeadDim = 128;

foveal_tensor rows(int64_t count, int64_t heads) {
    return {nullptr,
            FOVEAL_BF16,
            4,
            {1, count, heads, kHeadDim},
            {count * heads * kHeadDim, heads * kHeadDim, kHeadDim, 1}};
}

Plan plan_of(const Mask& mask, int64_t length, int32_t ranks, double link_bytes_per_second) {
    int64_t needed = 0;
    foveal_place(mask.placement, &length, 1, ranks, nullptr, 0, &needed);
    std::vector<foveal_span> spans(static_cast<size_t>(needed));
    foveal_place(mask.placement, &length, 1, ranks, spans.data(), needed, &needed);
    int64_t own = 0;
    for (const foveal_span& span : spans) own += span.rank == 0 ? span.rows : 0;
    foveal_forward_args forward;
    foveal_forward_args_init(&forward);
    forward.backend = FOVEAL_BACKEND_SM90;
    forward.q = forward.out = rows(own, kHeadsQ);
    forward.k = forward.v = rows(own, kHeadsK);
    forward.window_left = mask.left;
    forward.window_right = mask.right;
    foveal_parallel_args args;
    foveal_parallel_args_init(&args);
    args.ranks = ranks;
    args.forward = &forward;
    args.spans_q = spans.data();
    args.spans_q_count = needed;
    args.link_bytes_per_second = link_bytes_per_second;
    return foveal::parallel::make_plan(args);
}

std::string name_of(const Estimate& e, int32_t ranks) {
    if (e.method.gathers) return "all_gather";
    if (e.method.head_ranks == 1) return "ring";
    const std::string crews = std::to_string(ranks / e.method.head_ranks);
    return "ulysses " + std::to_string(e.method.head_ranks) + (e.method.head_ranks == ranks ? "" : " · ring " + crews);
}

// The fastest of the estimates that `is_of` takes, in ms; "-" if none.
template <class Condition>
std::string fastest(const Plan& plan, const Condition& is_of) {
    for (const Estimate& e : plan.considered) {  // in ascending order
        char text[32];
        std::snprintf(text, sizeof text, "%.3g", e.seconds * 1e3);
        if (is_of(e)) return text;
    }
    return "-";
}

void print_row(const Mask& mask, int64_t length, int32_t ranks, double link) {
    const Plan plan = plan_of(mask, length, ranks, link);
    const double alone = plan_of(mask, length, 1, link).considered[0].seconds;
    const Estimate& best = plan.considered[0];
    const auto is_ring = [](const Estimate& e) { return !e.method.gathers && e.method.head_ranks == 1; };
    const auto is_gather = [](const Estimate& e) { return e.method.gathers; };
    const auto is_ulysses = [&](const Estimate& e) { return e.method.head_ranks == ranks; };
    const auto is_both = [&](const Estimate& e) { return e.method.head_ranks > 1 && e.method.head_ranks < ranks; };
    std::printf("| %s | %lldk | %d | %.3g | %s | %s | %s | %s | %s | %.2f | %.0f |\n", mask.name,
                static_cast<long long>(length >> 10), ranks, alone * 1e3, fastest(plan, is_ring).c_str(),
                fastest(plan, is_gather).c_str(), fastest(plan, is_ulysses).c_str(), fastest(plan, is_both).c_str(),
                name_of(best, ranks).c_str(), alone / best.seconds, best.bytes / 1e6);
}

}  // namespace

int main(int argc, char** argv) {
    const double link = argc > 1 ? std::atof(argv[1]) * 1e9 : 0;
    const Mask masks[] = {{"causal", FOVEAL_UNLIMITED, 0, FOVEAL_ZIGZAG},
                          {"full", FOVEAL_UNLIMITED, FOVEAL_UNLIMITED, FOVEAL_CONTIGUOUS},
                          {"window 4096", 4095, 0, FOVEAL_CONTIGUOUS}};
    std::printf(
        "| mask | s | ranks | one card, ms | ring | all_gather | ulysses | both | taken | times one card | MB received "
        "|\n");
    std::printf("|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|\n");
    for (const Mask& mask : masks)
        for (const int64_t length : {int64_t{1} << 15, int64_t{1} << 17, int64_t{1} << 19, int64_t{1} << 20})
            for (const int32_t ranks : {2, 8, 64}) print_row(mask, length, ranks, link);
}
