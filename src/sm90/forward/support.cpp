#include "sm90/forward/support.hpp"

#include <cmath>
#include <iterator>
#include <limits>
#include <string>

#include "sm90/forward/tiles.hpp"
#include "sm90/scores/softcap.hpp"
#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

// Four warpgroups with blocks of 64 keys fill the tensor cores best; three with blocks of 128 need fewer instructions a
// score. Time of three over four (H200, 2026-11-25, d 64, h 32, full): s512 1.10, s4096 1.03, s16384 0.96; causal
// s16384 1.00.
bool too_long(int32_t tile_index, ForwardVariant variant, const ForwardProblem& p) {
    constexpr int64_t kLongRow = 16384;
    return tile_index == kTileD64 && variant == ForwardVariant::plain && !p.varlen && !p.window().limited() &&
           p.rows_k >= kLongRow && knows_lengths_of_keys(p);
}

// Does it take a kernel for keys of any form?
bool needs_any_keys(const ForwardProblem& p) {
    const bool unlike_q = p.keys == KeyForm::paged || p.varlen != (p.keys == KeyForm::varlen);
    // Under dropout there are only such kernels: one for all.
    return unlike_q || p.has_query_offset || p.has_tree || p.keys_dtype == DType::e4m3 || p.drops_weights();
}

// One value for several heads or sequences.
bool shares_values(const ForwardProblem& p) {
    return (p.has_alibi && p.alibi.head == 0) || (p.has_sinks && p.sinks.head == 0) ||
           (p.has_seqused_q && p.seqused_q_stride == 0) || (p.has_seqused_k && p.seqused_k_stride == 0);
}

// What the problem asks of a kernel, besides a log-sum-exp.
ForwardVariant variant_of(const ForwardProblem& p) {
    if (p.drops_weights()) return ForwardVariant::dropout;
    // Multiplying by a scale that is not positive would not keep the order of the scores, nor a mask's -inf.
    const bool positive_scale = p.scale >= std::numeric_limits<float>::min();
    if (!positive_scale || p.chunk > 0 || p.has_alibi || p.has_mask || p.has_tree || p.softcap > kLargestFastSoftcap ||
        shares_values(p))
        return ForwardVariant::options;
    // Elements of 16 bits are copied to shared memory (scores/staged_bias.cuh).
    if (p.has_bias) return p.softcap == 0 && p.bias_dtype == p.dtype ? ForwardVariant::bias : ForwardVariant::options;
    return p.softcap > 0 ? ForwardVariant::softcap : ForwardVariant::plain;
}

ForwardVariant with_lse(ForwardVariant variant) {
    return variant == ForwardVariant::dropout   ? variant
           : variant == ForwardVariant::plain   ? ForwardVariant::lse
           : variant == ForwardVariant::softcap ? ForwardVariant::softcap_lse
           : variant == ForwardVariant::bias    ? ForwardVariant::bias_lse
                                                : ForwardVariant::options_lse;
}

// An f32 out has kernels of its own, without and with every option.
ForwardVariant in_f32(ForwardVariant variant) {
    return variant == ForwardVariant::plain ? ForwardVariant::part : ForwardVariant::options_part;
}

ForwardChoice choice_of(const ForwardProblem& p, ForwardVariant variant) {
    const bool is_f32 = p.out_dtype == DType::f32, any_keys = needs_any_keys(p),
               dequantises = p.keys_dtype == DType::e4m3;
    const ForwardVariant and_lse = is_f32 ? in_f32(variant) : with_lse(variant);
    const ForwardVariant needed = is_f32 || p.wants_lse ? and_lse : variant;
    const ForwardVariant all = is_f32                               ? ForwardVariant::options_part
                               : variant == ForwardVariant::dropout ? variant
                                                                    : ForwardVariant::options_lse;
    for (int32_t i = 0; const auto& entry : kForwardTiles) {
        const ForwardTile& tile = entry.tile;
        if (p.head_dim <= tile.head_dim && p.head_dim_v <= tile.head_dim_v && !(tile.dense_only && p.varlen) &&
            !too_long(i, needed, p))
            for (const ForwardVariant served : {needed, and_lse, all})
                if (dequantises ? dequantises_with(entry, served) : entry.serves(served, any_keys))
                    return {i, served, any_keys, dequantises};
        ++i;
    }
    if (is_f32)
        refuse(
            "out.dtype is f32 beside pages, query_offset, a tree, e4m3 keys, or only one of q and k packed; the sm90 "
            "backend takes that up to a head dimension of 256");
    throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 tile for this problem");
}

}  // namespace

const char* name_of(ForwardVariant variant) {
    switch (variant) {
        case ForwardVariant::plain:
            return "plain";
        case ForwardVariant::lse:
            return "with log-sum-exp";
        case ForwardVariant::softcap:
            return "with softcap";
        case ForwardVariant::softcap_lse:
            return "with softcap and log-sum-exp";
        case ForwardVariant::bias:
            return "with a bias";
        case ForwardVariant::bias_lse:
            return "with a bias and log-sum-exp";
        case ForwardVariant::options:
            return "with score options";
        case ForwardVariant::options_lse:
            return "with score options and log-sum-exp";
        case ForwardVariant::part:
            return "with log-sum-exp and an f32 out";
        case ForwardVariant::options_part:
            return "with score options, log-sum-exp and an f32 out";
        case ForwardVariant::dropout:
            return "with score options, log-sum-exp and dropout";
    }
    return "unknown";
}

bool knows_lengths_of_keys(const ForwardProblem& p) { return p.keys == KeyForm::dense && !p.has_seqused_k; }

ForwardChoice choice_of(const ForwardProblem& p) { return choice_of(p, variant_of(p)); }

void check_tile_count(const ForwardProblem& p, const ForwardTile& tile) {
    const double row_blocks =
        std::ceil(static_cast<double>(p.total_rows_q()) / tile.rows()) + static_cast<double>(p.batch);
    const double tiles = row_blocks * static_cast<double>(p.heads_q);
    if (tiles >= std::numeric_limits<int32_t>::max() / 2)
        refuse("q has " + std::to_string(p.batch) + " sequences, " + std::to_string(p.rows_q) + " rows and " +
               std::to_string(p.heads_q) + " heads: more than 2^30 tiles, which the sm90 backend does not support");
}

void check_supported(const ForwardProblem& p) {
    require_scale(p, "the sm90 backend");
    if (p.dtype == DType::f32) refuse("q.dtype is f32; the sm90 backend supports bf16 and f16");
    if (p.out_dtype != p.dtype && p.out_dtype != DType::f32)
        refuse("out.dtype is " + name_of(p.out_dtype) + "; the sm90 backend writes f32 and q's, " + name_of(p.dtype));
    if (p.drops_weights() && p.out_dtype == DType::f32)
        refuse("out.dtype is f32 beside dropout_p " + std::to_string(p.dropout_p) + "; the sm90 backend writes " +
               name_of(p.dtype) + " there");
    if (p.drops_weights() && p.keys_dtype == DType::e4m3)
        refuse("k.dtype is e4m3 beside dropout_p " + std::to_string(p.dropout_p) + "; the sm90 backend takes " +
               name_of(p.dtype) + " there");
    const ForwardTile& widest = kForwardTiles[std::size(kForwardTiles) - 1].tile;
    check_head_dim("q", p.head_dim, widest.head_dim);
    check_head_dim("v", p.head_dim_v, widest.head_dim_v);
    const ForwardChoice choice = choice_of(p);
    check_keys_in_e4m3(p);
    check_strides(p);
    check_tile_count(p, kForwardTiles[choice.tile_index].tile);
}

}  // namespace foveal::sm90
