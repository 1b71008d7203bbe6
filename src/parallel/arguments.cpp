#include "parallel/arguments.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "cards.hpp"
#include "problem/argument.hpp"
#include "problem/mask.hpp"

namespace foveal::parallel {
namespace {

struct Member {
    const char* name;
    foveal_tensor foveal_forward_args::*tensor;
};
// What one rank's call has, and what spans stand for.
constexpr Member kTaken[] = {
    {"q", &foveal_forward_args::q},         {"k", &foveal_forward_args::k},
    {"v", &foveal_forward_args::v},         {"out", &foveal_forward_args::out},
    {"lse", &foveal_forward_args::lse},     {"alibi_slopes", &foveal_forward_args::alibi_slopes},
    {"sinks", &foveal_forward_args::sinks}, {"bias", &foveal_forward_args::bias},
    {"mask", &foveal_forward_args::mask}};
constexpr Member kRefused[] = {
    {"cu_seqlens_q", &foveal_forward_args::cu_seqlens_q}, {"cu_seqlens_k", &foveal_forward_args::cu_seqlens_k},
    {"seqused_q", &foveal_forward_args::seqused_q},       {"seqused_k", &foveal_forward_args::seqused_k},
    {"block_table", &foveal_forward_args::block_table},   {"page_indptr", &foveal_forward_args::page_indptr},
    {"page_indices", &foveal_forward_args::page_indices}, {"query_offset", &foveal_forward_args::query_offset},
    {"tree_mask", &foveal_forward_args::tree_mask}};
constexpr Member kDescales[] = {{"q_descale", &foveal_forward_args::q_descale},
                                {"k_descale", &foveal_forward_args::k_descale},
                                {"v_descale", &foveal_forward_args::v_descale}};

[[noreturn]] void refuse_unsupported(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

// An option that foveal.h has got and this file has not is refused as well: what is left without the known ones is not
// the default.
void refuse_others(const foveal_forward_args& given) {
    for (const Member& member : {kTaken[0], kTaken[1], kTaken[2]})
        if ((given.*member.tensor).dtype == FOVEAL_E4M3)
            refuse_unsupported(std::string("forward.") + member.name +
                               ".dtype is e4m3; over several ranks f32, bf16 and f16 are supported");
    for (const Member& member : kDescales)
        if ((given.*member.tensor).rank != 0)
            refuse_unsupported(std::string("forward.") + member.name +
                               " is present; it belongs to e4m3, which is not supported over several ranks");
    for (const Member& member : kRefused)
        if ((given.*member.tensor).rank != 0)
            refuse_unsupported(std::string("forward.") + member.name +
                               " is present; over several ranks, spans say which rows there are");
    if (given.workspace != nullptr || given.workspace_bytes != 0)
        refuse_unsupported("forward.workspace is present; the workspace of foveal_parallel_args serves all");
    foveal_forward_args rest = given, defaults;
    foveal_forward_args_init(&defaults);
    for (const Member& member : kTaken) rest.*member.tensor = {};
    rest.backend = defaults.backend;
    rest.scale = defaults.scale;
    rest.alignment = defaults.alignment;
    rest.window_left = defaults.window_left;
    rest.window_right = defaults.window_right;
    rest.chunk = defaults.chunk;
    rest.softcap = defaults.softcap;
    if (given.dropout_p != 0)
        refuse_unsupported("forward.dropout_p is " + std::to_string(given.dropout_p) +
                           "; over several ranks it must be 0");
    if (std::memcmp(&rest, &defaults, sizeof rest) != 0)
        refuse_unsupported("forward has an option that is not supported over several ranks");
}

// Of k and v: a rank's rows lie together, as they are sent.
void require_no_gaps(const char* name, const foveal_tensor& t) {
    int64_t stride = 1;
    for (int i = 3; i > 0; --i) {
        if (t.shape[i] > 1 && t.stride[i] != stride)
            refuse_unsupported(std::string("forward.") + name + ".stride[" + std::to_string(i) + "] is " +
                               std::to_string(t.stride[i]) + " where its rows without gaps have " +
                               std::to_string(stride) + "; k and v are sent as they lie");
        stride *= t.shape[i];
    }
}

void require_rows(const char* name, int64_t rows, const Layout& layout, int32_t rank) {
    const int64_t expected = layout.rows_of_rank[static_cast<size_t>(rank)];
    if (rows != expected)
        refuse(std::string("forward.") + name + " has " + std::to_string(rows) + " rows; the spans of rank " +
               std::to_string(rank) + " have " + std::to_string(expected));
}

// A bias or a mask has this rank's rows and every key of its one sequence; either may be 1, for all.
void check_matrix(const Argument& a, const ForwardProblem& local, int64_t len_k) {
    if (!a.present()) return;
    const struct {
        int64_t size;
        const char* or_one;
    } scores[] = {{local.batch, "q.shape[0] (or 1)"},
                  {local.heads_q, "q's heads (or 1)"},
                  {local.rows_q, "q's rows (or 1)"},
                  {len_k, "the sequence's keys (or 1)"}};
    for (int i = 0; i < a.tensor.rank; ++i) {
        const auto& dimension = scores[FOVEAL_MAX_RANK - a.tensor.rank + i];
        if (a.tensor.shape[i] != 1) require_dim(a, i, dimension.size, dimension.or_one);
    }
    check_strided(a, LastStride::one_or_shared);
}

void check_numbers(const foveal_parallel_args& args) {
    const auto check = [](const char* name, int64_t value, int64_t begin, int64_t end) {
        if (value < begin || value >= end)
            refuse(std::string(name) + " is " + std::to_string(value) + "; it must lie in [" + std::to_string(begin) +
                   ", " + std::to_string(end) + ")");
    };
    constexpr int64_t kMaxRanks = 1 << 16;
    check("ranks", args.ranks, 1, kMaxRanks);
    check("rank", args.rank, 0, args.ranks);
    check("method", args.method, FOVEAL_PARALLEL_AUTO, FOVEAL_PARALLEL_ULYSSES + 1);
    check("head_ranks", args.head_ranks, 0, args.ranks + 1);
    check("reserved", args.reserved, 0, 1);
    check("spans_q_count", args.spans_q_count, 0, kMaxSequenceLength);
    check("spans_k_count", args.spans_k_count, 0, kMaxSequenceLength);
    if (args.spans_q == nullptr && args.spans_q_count != 0) refuse("spans_q is NULL, and spans_q_count is not 0");
    if (args.spans_k == nullptr && args.spans_k_count != 0) refuse("spans_k is NULL, and spans_k_count is not 0");
    if (!(args.link_bytes_per_second >= 0) || std::isinf(args.link_bytes_per_second))
        refuse("link_bytes_per_second is " + std::to_string(args.link_bytes_per_second) +
               "; it must be positive and finite, or 0 for NVLink's");
    if (args.forward->backend != FOVEAL_BACKEND_CPU && args.forward->backend != FOVEAL_BACKEND_SM90)
        refuse("forward.backend is " + std::to_string(args.forward->backend) +
               "; a plan over ranks is for cpu or sm90");
}

}  // namespace

void add_batch(foveal_tensor& t, int32_t packed_rank) {
    if (t.rank != packed_rank) return;
    for (int i = t.rank; i > 0; --i) {
        t.shape[i] = t.shape[i - 1];
        t.stride[i] = t.stride[i - 1];
    }
    t.shape[0] = 1;
    t.stride[0] = 0;
    t.rank = packed_rank + 1;
}

foveal_forward_args local_args(const foveal_forward_args& given) {
    refuse_others(given);
    foveal_forward_args local = given;
    for (foveal_tensor* t : {&local.q, &local.k, &local.v, &local.out}) add_batch(*t, 3);
    add_batch(local.lse, 2);
    return local;
}

foveal_forward_args plain_args(const foveal_forward_args& local) {
    foveal_forward_args plain = local;
    plain.bias = plain.mask = {};
    if (plain.alibi_slopes.rank == 2 && plain.q.shape[0] == 1) plain.alibi_slopes.shape[0] = 1;
    plain.alignment = FOVEAL_BOTTOM_RIGHT;
    plain.window_left = plain.window_right = FOVEAL_UNLIMITED;
    plain.chunk = 0;
    return plain;
}

ForwardProblem local_problem(const foveal_forward_args& local) { return validate(plain_args(local)); }

Problem problem_of(const foveal_parallel_args& args) {
    check_numbers(args);
    const foveal_forward_args local = local_args(*args.forward);
    Problem problem;
    problem.rank = args.rank;
    problem.ranks = args.ranks;
    problem.local = local_problem(local);
    foveal_forward_args windowed = local;
    windowed.bias = windowed.mask = windowed.alibi_slopes = {};
    validate(windowed);
    const bool k_as_q = args.spans_k == nullptr;
    problem.q = layout_of({args.spans_q, static_cast<size_t>(args.spans_q_count)}, args.ranks, "spans_q");
    problem.k =
        k_as_q ? problem.q : layout_of({args.spans_k, static_cast<size_t>(args.spans_k_count)}, args.ranks, "spans_k");
    require_rows("q", problem.local.rows_q, problem.q, args.rank);
    require_rows("k", problem.local.rows_k, problem.k, args.rank);
    require_no_gaps("k", local.k);
    require_no_gaps("v", local.v);
    const size_t sequences = std::max(problem.q.length_of.size(), problem.k.length_of.size());
    if (problem.local.batch > kMostSequences)
        refuse("forward.q has " + std::to_string(problem.local.batch) + " sequences; over ranks a call has at most " +
               std::to_string(kMostSequences));
    if (problem.local.batch != 1 && sequences > 1)
        refuse("spans name " + std::to_string(sequences) + " sequences; tensors of a batch have one, number 0");
    const foveal_tensor& slopes = local.alibi_slopes;
    if (slopes.rank == 2 && problem.local.batch == 1 && slopes.shape[0] < static_cast<int64_t>(sequences))
        refuse("forward.alibi_slopes.shape[0] is " + std::to_string(slopes.shape[0]) + "; spans name " +
               std::to_string(sequences) + " sequences");
    if (sequences > 1 && (local.bias.rank != 0 || local.mask.rank != 0))
        refuse(std::string(local.bias.rank != 0 ? "forward.bias" : "forward.mask") +
               " is present; it needs one sequence, and spans name " + std::to_string(sequences));
    const int64_t len_k = problem.k.length_of.empty() ? 0 : problem.k.length_of[0];
    check_matrix({"forward.bias", local.bias}, problem.local, len_k);
    check_matrix({"forward.mask", local.mask}, problem.local, len_k);
    const auto width = [](int64_t w) { return w >= kUnlimitedWidth ? int64_t{FOVEAL_UNLIMITED} : w; };
    problem.visibility = {width(local.window_left), width(local.window_right), local.chunk,
                          local.alignment == FOVEAL_TOP_LEFT,
                          local.alibi_slopes.rank != 0 || local.bias.rank != 0 || local.mask.rank != 0};
    problem.link_bytes_per_second =
        args.link_bytes_per_second > 0 ? args.link_bytes_per_second : kCards[0].link_bytes_per_second;
    return problem;
}

}  // namespace foveal::parallel
