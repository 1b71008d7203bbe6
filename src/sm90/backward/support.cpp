#include "sm90/backward/support.hpp"

#include <algorithm>
#include <iterator>
#include <string>

#include "sm90/backward/score_sums.hpp"
#include "sm90/backward/tiles.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

constexpr char kCpuDoes[] = ", which the cpu backend computes and sm90 does not yet";

void check_forms(const ForwardProblem& p) {
    const auto refuse_present = [](const char* name) {
        refuse(std::string(name) + " is present beside a gradient" + kCpuDoes);
    };
    if (p.varlen && p.keys == KeyForm::dense)
        refuse(std::string("cu_seqlens_k is absent beside cu_seqlens_q: dense k and v beside a varlen q") + kCpuDoes);
    if (!p.varlen && p.keys == KeyForm::varlen) refuse_present("cu_seqlens_k beside a dense q");
    if (p.has_query_offset) refuse_present("query_offset");
    if (p.has_tree) refuse_present("tree_mask");
}

void check_gradients(const BackwardProblem& problem) {
    const struct {
        const char* name;
        bool is_asked;
        DType dtype;
    } written[] = {{"dq", problem.wants_dq, problem.dq_dtype},
                   {"dk", problem.wants_dk, problem.dk_dtype},
                   {"dv", problem.wants_dv, problem.dv_dtype}};
    for (const auto& [name, is_asked, dtype] : written)
        if (is_asked && dtype != problem.forward.dtype)
            refuse(std::string(name) + ".dtype is " + name_of(dtype) + "; the sm90 backend writes q's, " +
                   name_of(problem.forward.dtype));
}

// Tasks, and tiles of queries, are counted in 32 bits.
void check_counts(const BackwardProblem& problem) {
    const ForwardProblem& p = problem.forward;
    constexpr double kMost = 1 << 30;
    const auto tiles = [&](int64_t rows, int32_t tile_rows, int64_t heads) {
        const double all = static_cast<double>(rows) * (p.varlen ? 1 : static_cast<double>(p.batch));
        return (all / tile_rows + static_cast<double>(p.batch)) * static_cast<double>(heads);
    };
    if (std::max(tiles(p.rows_q, kBackwardQueries, p.heads_q), tiles(p.rows_k, kWideKeys, p.heads_k)) >= kMost)
        refuse("q has " + std::to_string(p.batch) + " sequences, " + std::to_string(p.rows_q) + " rows and " +
               std::to_string(p.heads_q) + " heads: more than 2^30 tiles, which the sm90 backend does not support");
    const double of_bias = tiles(p.rows_q, kBackwardQueries, p.heads_q) * static_cast<double>(p.rows_k / kSumKeys + 1);
    if (problem.wants_dbias && of_bias >= kMost)
        refuse("dbias is asked of more than 2^30 tiles of scores, which the sm90 backend does not support");
}

}  // namespace

int32_t tile_index_of(const BackwardProblem& problem) {
    const ForwardProblem& p = problem.forward;
    // Of wide heads only the widest have options.
    const bool with_options = has_options(variant_of(problem));
    const auto* const tile =
        std::find_if(std::begin(kBackwardTiles), std::end(kBackwardTiles), [&](const BackwardTile& t) {
            return p.head_dim <= t.head_dim && p.head_dim_v <= t.head_dim_v &&
                   (!with_options || !t.is_wide || t.is_widest());
        });
    return static_cast<int32_t>(tile - std::begin(kBackwardTiles));
}

BackwardVariant variant_of(const BackwardProblem& problem) {
    // Without options accumulators start at -lse / scale, which must be a number.
    constexpr float kLeastScale = 0x1p-64F;
    const ForwardProblem& p = problem.forward;
    const bool with_options = p.scale < kLeastScale || p.modifies_scores() || p.chunk > 0;
    if (!p.drops_weights()) return with_options ? BackwardVariant::options : BackwardVariant::plain;
    const int64_t widest = std::max(p.head_dim, p.head_dim_v);
    const bool is_wide =
        widest > kBackwardTiles[kBackwardD128].head_dim && widest <= kBackwardTiles[kBackwardD256].head_dim;
    return is_wide && !with_options ? BackwardVariant::dropout : BackwardVariant::dropout_options;
}

void check_backward_supported(const BackwardProblem& problem) {
    const ForwardProblem& p = problem.forward;
    require_differentiable(problem);
    check_forms(p);
    check_gradients(problem);
    require_scale(p, "the sm90 backend");
    if (p.dtype == DType::f32) refuse("q.dtype is f32; the sm90 backend supports bf16 and f16");
    const int32_t widest = kBackwardTiles[kBackwardTileCount - 1].head_dim;
    check_head_dim("q", p.head_dim, widest);
    check_head_dim("v", p.head_dim_v, widest);
    const int64_t element = bytes_of(p.dtype);
    check_strides("q", p.q, element);
    check_strides("k", p.k, element);
    check_strides("v", p.v, element);
    check_strides("out", p.out, element);
    check_strides("dout", problem.dout, element);
    check_strides("dq", problem.dq, element);
    check_strides("dk", problem.dk, element);
    check_strides("dv", problem.dv, element);
    check_counts(problem);
}

void check_pointers(const BackwardPointers& pointers) {
    check_alignment("q", pointers.forward.q);
    check_alignment("k", pointers.forward.k);
    check_alignment("v", pointers.forward.v);
    check_alignment("out", pointers.forward.out);
    check_alignment("dout", pointers.dout);
    check_alignment("dq", pointers.dq);
    check_alignment("dk", pointers.dk);
    check_alignment("dv", pointers.dv);
    check_alignment("workspace", pointers.workspace);
}

}  // namespace foveal::sm90
