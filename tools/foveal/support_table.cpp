#include "support_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "tests/support/backward_data.hpp"
#include "tests/support/case_data.hpp"

namespace foveal_tool {
namespace {

using Texts = std::vector<std::string>;

constexpr foveal_backend kBackends[] = {FOVEAL_BACKEND_CPU, FOVEAL_BACKEND_SM90};
constexpr const char* kTypes[] = {"f32", "bf16", "f16"};  // e4m3 has rows of its own, and is in the others where ...
constexpr int kUsualDims[] = {64, 128, 192, 256, 512};    // that options are asked for with
constexpr int kLargestDim = 1024;                         // that is asked for

bool supports(foveal_backend backend, const std::string& words) {
    if (foveal_testing::is_backward_text(words)) {
        foveal_forward_args forward;
        const foveal_backward_args args =
            foveal_testing::backward_shape_args(foveal_testing::parse_backward_case(words), backend, forward);
        return foveal_backward_supports(&args) == FOVEAL_OK;
    }
    const foveal_forward_args args = foveal_testing::shape_args(foveal_testing::parse_case(words), backend);
    return foveal_supports(&args) == FOVEAL_OK;
}

std::string dense(const std::string& options) { return "b2 s256 hq4 hk2 " + options; }
std::string varlen(const std::string& options) { return "varlen qlens=256,0,100 klens=256,7,300 hq4 hk2 " + options; }

// The problem `words`, of this type and these head dimensions.
std::string of_dims(const std::string& words, const std::string& type, int dim, int dim_v) {
    return fmt::format("{} {} d{} dv{}", words, type, dim, dim_v);
}

// ... it has every option, as bf16 has.
bool has_all_of_e4m3(foveal_backend backend) {
    const std::string every = "softcap30 alibi sinks left64 chunk128 bias=bh mask=b1 lse",
                      pages = "page16 used_k=9,256";
    return supports(backend, of_dims(dense(every), "e4m3", 256, 256)) &&
           supports(backend, of_dims(dense(pages), "e4m3", 256, 256));
}

Texts types_of(foveal_backend backend) {
    Texts types;
    for (const char* type : kTypes)
        if (supports(backend, of_dims(dense("full"), type, 128, 128))) types.push_back(type);
    if (has_all_of_e4m3(backend)) types.push_back("e4m3");
    return types;
}

bool dims_supported(foveal_backend backend, int dim, int dim_v) {
    const Texts types = types_of(backend);
    return std::all_of(types.begin(), types.end(), [&](const std::string& type) {
        return supports(backend, of_dims(dense("full"), type, dim, dim_v));
    });
}

std::string types_text(foveal_backend backend) { return fmt::format("{}", fmt::join(types_of(backend), ", ")); }

// "any", "multiples of 8 up to 256", or a list.
std::string dims_text(foveal_backend backend) {
    std::vector<int> dims;
    for (int dim = 1; dim <= kLargestDim; ++dim)
        if (dims_supported(backend, dim, dim)) dims.push_back(dim);
    if (dims.empty()) return "none";
    if (dims.size() == kLargestDim) return "any";
    for (size_t i = 0; i < dims.size(); ++i)
        if (dims[i] != static_cast<int>(i + 1) * dims.front()) return fmt::format("{}", fmt::join(dims, ", "));
    return fmt::format("multiples of {} up to {}", dims.front(), dims.back());
}

// Of the usual dimensions, and two small ones.
std::string dims_v_text(foveal_backend backend) {
    std::vector<int> dims = {8, 72};
    dims.insert(dims.end(), std::begin(kUsualDims), std::end(kUsualDims));
    Texts pairs;
    size_t asked = 0;
    for (const int dim : dims) {
        for (const int dim_v : dims) {
            if (dim == dim_v) continue;
            ++asked;
            if (dims_supported(backend, dim, dim_v)) pairs.push_back(fmt::format("{}/{}", dim, dim_v));
        }
    }
    return pairs.empty() ? "no" : pairs.size() == asked ? "yes" : fmt::format("{}", fmt::join(pairs, ", "));
}

// "yes", "no", or the dimensions with which all of the problems are supported, of every type.
std::string answer(foveal_backend backend, const Texts& problems) {
    std::vector<int> dims;
    for (const int dim : kUsualDims) {
        bool all = dims_supported(backend, dim, dim);
        for (const std::string& type : types_of(backend))
            for (const std::string& words : problems) {
                if (type == "e4m3" && foveal_testing::is_backward_text(words)) continue;  // as the row's title says
                all = all && supports(backend, of_dims(words, type, dim, dim));
            }
        if (all) dims.push_back(dim);
    }
    if (dims.empty()) return "no";
    if (dims.size() == std::size(kUsualDims)) return "yes";
    return fmt::format("d {}", fmt::join(dims, ", "));
}

// A row of the table and the problems that it stands for.
struct Row {
    const char* title;
    Texts problems;
};

std::vector<Row> rows() {
    const std::string scores = "softcap30 alibi sinks left64 right32 chunk128 lse";
    return {
        {"dense, varlen, used lengths",
         {dense("full"), varlen("full"), dense("used_q=9,256 used_k=0,3"), varlen("used_q=200,0,7 used_k=256,7,0")}},
        {"any ratio h_q / h_k", {"s256 h4", "s256 hq5 hk1", "s256 hq6 hk2", "s256 hq64 hk8", "s256 hq71 hk1"}},
        {"causal, windows; bottom-right or top-left",
         {dense("causal"), dense("causal topleft"), dense("left64 right32"), varlen("left9 topleft")}},
        {"keys in pages of any size; dense, varlen",
         {"b2 sq9 sk256 hq4 hk2 page16 used_k=9,256", "b2 sq1 sk256 hq4 hk2 page64 csr pool",
          "varlen qlens=256,0,100 sk300 hq4 hk2 page1 used_k=256,7,300", "b2 sq9 sk256 hq4 hk2 page17 bhsd"}},
        {"q and keys of different forms", {"b2 sq9 klens=256,7 hq4 hk2", "varlen qlens=9,100 sk256 hq4 hk2"}},
        {"query_offset, tree_mask",
         {dense("causal qoff=5,-3"), varlen("causal qoff=5,-3,0"), dense("tree causal"), varlen("tree")}},
        {"attention chunks", {dense("chunk128"), varlen("causal chunk100")}},
        {"softcap", {dense("softcap30"), varlen("softcap30")}},
        {"ALiBi slopes, [h_q] or [b, h_q]", {dense("alibi"), varlen("alibi_b")}},
        {"sinks", {dense("sinks"), varlen("sinks")}},
        {"additive bias, in the element type or f32 (dense)",
         {dense("bias=bh"), dense("bias=11"), dense("bias_f32=b1"), dense("bias_f32=1h")}},
        {"boolean mask (dense)", {dense("mask=bh"), dense("mask=11")}},
        {"all of these together", {dense(scores + " bias=bh mask=b1"), varlen(scores)}},
        {"log-sum-exp", {dense("lse"), varlen("causal lse")}},
        {"gradients of q, k and v (not in e4m3), deterministic",
         {"backward " + dense("causal"), "backward " + varlen("causal"),
          "backward " + dense("used_q=9,256 used_k=0,3 left64")}},
        {"gradients of slopes, sinks and bias, and through the log-sum-exp",
         {"backward " + dense(scores + " bias=bh mask=b1 dlse"), "backward " + varlen(scores + " dlse")}},
        {"dropout, of gradients too",
         {dense("dropout0.1 causal"), varlen(scores + " dropout0.5"), "backward " + dense("dropout0.1 causal")}},
        {"[b, s, h, d], [b, h, s, d], packed QKV, padding; without a copy",
         {dense("bhsd"), dense("qkv"), dense("pad"), dense("pad bhsd")}},
    };
}

// With its descales, in every form; of q in one of the other types.
std::string e4m3_keys_text(foveal_backend backend) {
    Texts types;
    for (const std::string type : {"f32", "bf16", "f16"}) {
        const std::string words = type + " kv_e4m3 descale causal";
        const Texts problems = {dense(words), varlen(words), dense("page16 used_k=9,256 " + words)};
        if (std::all_of(problems.begin(), problems.end(), [&](const auto& text) { return supports(backend, text); }))
            types.push_back(type);
    }
    return types.empty() ? "no" : fmt::format("beside {}", fmt::join(types, ", "));
}

// Of q, k and v in e4m3, where not all goes: the largest head dimension, and what does.
std::string all_e4m3_text(foveal_backend backend) {
    if (has_all_of_e4m3(backend)) return "with all of this table";
    int largest = 0;
    for (const int dim : kUsualDims)
        if (supports(backend, of_dims(dense("full"), "e4m3", dim, dim))) largest = dim;
    if (largest == 0) return "no";
    Texts can;
    const std::pair<const char*, Texts> options[] = {
        {"dense", {dense("full"), dense("used_q=9,256 used_k=0,3"), dense("bhsd")}},
        {"varlen", {varlen("full"), varlen("used_q=200,0,7 used_k=256,7,0")}},
        {"causal", {dense("causal"), dense("causal topleft"), varlen("causal")}},
        {"windows", {dense("left64 right32"), varlen("left9 topleft")}},
        {"chunks", {dense("chunk128"), varlen("causal chunk100")}},
        {"sinks", {dense("sinks"), varlen("sinks")}},
        {"log-sum-exp", {dense("lse"), varlen("causal lse")}},
        {"pages", {dense("page16 used_k=9,256")}},
        {"softcap", {dense("softcap30")}},
        {"ALiBi", {dense("alibi")}},
        {"bias", {dense("bias=bh")}},
        {"mask", {dense("mask=bh")}}};
    for (const auto& [name, problems] : options)
        if (std::all_of(problems.begin(), problems.end(), [&](const std::string& words) {
                return supports(backend, of_dims(words, "e4m3 descale", largest, largest));
            }))
            can.emplace_back(name);
    return fmt::format("d up to {}: {}", largest, fmt::join(can, ", "));
}

// Strides of q and k in elements, of a problem in a padded buffer.
std::string strides_text(foveal_backend backend, int64_t row_stride, int64_t batch_stride) {
    bool all = true;
    for (const std::string& type : types_of(backend)) {
        foveal_forward_args args =
            foveal_testing::shape_args(foveal_testing::parse_case(of_dims(dense("full"), type, 64, 64)), backend);
        for (foveal_tensor* t : {&args.q, &args.k}) {
            t->stride[0] = batch_stride;
            t->stride[1] = row_stride;
        }
        all = all && foveal_supports(&args) == FOVEAL_OK;
    }
    return all ? "yes" : "no";
}

// Two ranks, each with half of a sequence's rows: a plan of the forward call, or of its gradients.
std::string ranks_text(foveal_backend backend, bool of_gradients) {
    bool all = true;
    for (const char* const mask : {"full", "causal", "left64", "chunk100 causal", "softcap30 sinks"}) {
        const foveal_testing::Case c =
            foveal_testing::parse_case(of_dims(dense(std::string(mask) + " lse"), types_of(backend)[0], 64, 64));
        const foveal_forward_args half = foveal_testing::shape_args(c, backend);
        const foveal_span spans[] = {{0, 0, c.rows_q, 0, 0}, {0, c.rows_q, c.rows_q, 1, 0}};
        foveal_parallel_args args;
        foveal_parallel_args_init(&args);
        args.ranks = 2;
        args.forward = &half;
        args.spans_q = spans;
        args.spans_q_count = 2;
        foveal_backward_args gradients;
        foveal_backward_args_init(&gradients);
        gradients.forward = &half;
        gradients.dout = half.out;
        gradients.dq = half.q;
        gradients.dk = half.k;
        gradients.dv = half.v;
        gradients.dsinks = half.sinks;
        foveal_parallel_plan* plan = nullptr;
        all = (of_gradients ? foveal_parallel_backward_plan_create(&args, &gradients, &plan)
                            : foveal_parallel_plan_create(&args, &plan)) == FOVEAL_OK &&
              all;
        foveal_parallel_plan_destroy(plan);
    }
    return all ? "yes" : "no";
}

std::string line(const std::string& title, const std::function<std::string(foveal_backend)>& cell) {
    std::string text = "| " + title + " |";
    for (const foveal_backend backend : kBackends) text += " " + cell(backend) + " |";
    return text + "\n";
}

}  // namespace

std::string support_markdown() {
    std::string table = "| | CPU | Hopper (sm_90a) |\n|---|---|---|\n";
    table += line("element types", types_text);
    table += line("q, k and v in e4m3, with descales", all_e4m3_text);
    table += line("k and v alone in e4m3, with descales", e4m3_keys_text);
    table += line("head dimension d = d_v", dims_text);
    table += line("d_v other than d", dims_v_text);
    for (const Row& row : rows())
        table += line(row.title, [&row](foveal_backend backend) { return answer(backend, row.problems); });
    table += line("one sequence over several ranks", [](foveal_backend backend) { return ranks_text(backend, false); });
    table += line("gradients of that", [](foveal_backend backend) { return ranks_text(backend, true); });
    const int64_t row = 4 * 64, batch = 256 * row;
    table +=
        line("strides beyond 32 bits", [&](foveal_backend backend) { return strides_text(backend, row, 1LL << 33); });
    table += line("strides that are no multiple of 16 bytes",
                  [&](foveal_backend backend) { return strides_text(backend, row + 1, 2 * batch + 1); });
    return table;
}

}  // namespace foveal_tool
