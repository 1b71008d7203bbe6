#include "sm90/decode/support.hpp"

#include <limits>
#include <string>

#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

constexpr int32_t kWidestHead = kDecodeTiles[kDecodeTileCount - 1].tile.head_dim,
                  kMostColumns = kDecodeTiles[kDecodeTileCount - 1].tile.columns;

// Every part reads K and V anew: with more, tiles of many rows are the way.
constexpr int64_t kMostParts = 8;

// q's rows and heads that share a KV head.
int64_t columns_of(const ForwardProblem& p) { return p.rows_q * p.heads_per_kv(); }

// What keeps a problem from the decode kernel whatever its keys are; "" where nothing does.
std::string obstacle_of(const ForwardProblem& p) {
    const auto present = [](const char* name) { return std::string(name) + " is present"; };
    if (p.varlen) return "cu_seqlens_q is present";
    if (p.has_bias) return present("bias");
    if (p.has_mask) return present("mask");
    if (p.has_tree) return present("tree_mask");
    if (p.dtype == DType::f32) return "q.dtype is f32";
    if (p.head_dim > kWidestHead) return "q's head dimension is " + std::to_string(p.head_dim);
    if (p.head_dim_v > kWidestHead) return "v's head dimension is " + std::to_string(p.head_dim_v);
    if (columns_of(p) > kMostColumns * kMostParts)
        return "q has " + std::to_string(p.rows_q) + " rows of " + std::to_string(p.heads_per_kv()) +
               " heads that share one of k";
    return "";
}

bool is_plain(const ForwardProblem& p) {
    const bool positive_scale = p.scale >= std::numeric_limits<float>::min();
    return positive_scale && p.softcap == 0 && !p.has_alibi;
}

}  // namespace

bool decodes(const ForwardProblem& p) {
    if (!obstacle_of(p).empty()) return false;
    // What the forward kernel does not do.
    if (p.keys != KeyForm::dense || p.has_query_offset) return true;
    return p.has_seqused_k && columns_of(p) <= kMostColumns;
}

void refuse_pages(const ForwardProblem& p) {
    refuse(obstacle_of(p) + " beside " + (p.lists_pages ? "page_indices" : "block_table") +
           "; of keys in pages the sm90 backend supports bf16 and f16, dense q, head dimensions up to " +
           std::to_string(kWidestHead) + ", up to " + std::to_string(kMostColumns * kMostParts) +
           " rows times heads that share one of k, and neither bias, mask nor tree_mask");
}

void check_decode(const ForwardProblem& p) {
    require_scale(p, "the sm90 backend");
    check_head_dim("q", p.head_dim, kWidestHead);
    check_head_dim("v", p.head_dim_v, kWidestHead);
    check_strides(p);
    const double ctas = static_cast<double>(p.batch) * static_cast<double>(p.heads_k) * kMostParts;
    if (ctas >= std::numeric_limits<int32_t>::max() / 2)
        refuse("q has " + std::to_string(p.batch) + " sequences and k " + std::to_string(p.heads_k) +
               " heads: more than the sm90 backend can count");
}

DecodeChoice decode_choice_of(const ForwardProblem& p) {
    const int64_t columns = columns_of(p);
    const DecodeVariant variant = is_plain(p) ? DecodeVariant::plain : DecodeVariant::options;
    for (int32_t i = 0; const DecodeTileEntry& entry : kDecodeTiles) {
        const DecodeTile& tile = entry.tile;
        if (p.head_dim <= tile.head_dim && p.head_dim_v <= tile.head_dim && entry.serves(variant) &&
            (columns <= tile.columns || tile.columns == kMostColumns)) {
            const int64_t parts = (columns + tile.columns - 1) / tile.columns;
            return {i, variant, static_cast<int32_t>(parts > 0 ? parts : 1)};
        }
        ++i;
    }
    throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 tile for this decode");
}

}  // namespace foveal::sm90
