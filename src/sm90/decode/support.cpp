#include "sm90/decode/support.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

constexpr int32_t kWidestHead = kDecodeTiles[kDecodeTileCount - 1].tile.head_dim;

// The most rows of a dense q that are few, and the most parts of their columns, each of which reads K and V anew:
// beyond that the forward kernel, whose tiles hold more columns, reads less. A single row is always one of few.
constexpr int64_t kFewRows = 16, kFewParts = 2;

// Of the tiles for these head dimensions and options, the first that holds all columns, or else the last.
int32_t tile_index_of(const ForwardProblem& p, DecodeVariant variant, int64_t columns) {
    int32_t last = -1;
    for (int32_t i = 0; i < kDecodeTileCount; ++i) {
        const DecodeTile& tile = kDecodeTiles[i].tile;
        const bool holds = p.head_dim <= tile.head_dim && p.head_dim_v <= tile.head_dim;
        if (!holds || !kDecodeTiles[i].serves(variant)) continue;
        if (last >= 0 && tile.head_dim != kDecodeTiles[last].tile.head_dim) break;
        last = i;
        if (columns <= tile.columns) break;
    }
    if (last < 0) throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 tile for this decode");
    return last;
}

bool is_plain(const ForwardProblem& p) {
    const bool positive_scale = p.scale >= std::numeric_limits<float>::min();
    return positive_scale && p.softcap == 0 && !p.has_alibi && !p.has_tree;
}

DecodeVariant variant_of(const ForwardProblem& p) {
    return is_plain(p) ? DecodeVariant::plain : DecodeVariant::options;
}

// A dense q's rows and heads that share a KV head. Of a varlen q only the device knows how many rows a sequence has,
// and the kernel may not depend on the others' rows: then the tile is one for a row, or two where heads are few.
int64_t columns_of(const ForwardProblem& p) {
    return p.varlen ? std::max<int64_t>(p.heads_per_kv(), kOctetColumns) : p.rows_q * p.heads_per_kv();
}

int64_t parts_of(const ForwardProblem& p) {
    const int64_t columns = columns_of(p),
                  at_once = kDecodeTiles[tile_index_of(p, variant_of(p), columns)].tile.columns;
    return std::max<int64_t>((columns + at_once - 1) / at_once, 1);
}

}  // namespace

bool decodes(const ForwardProblem& p) {
    const bool has_matrix = p.has_bias || p.has_mask;
    const bool holds =
        p.dtype != DType::f32 && p.out_dtype == p.dtype && p.head_dim <= kWidestHead && p.head_dim_v <= kWidestHead;
    return holds && !has_matrix && !p.varlen && (p.rows_q == 1 || (p.rows_q <= kFewRows && parts_of(p) <= kFewParts));
}

int64_t counts_of(const ForwardProblem& p, const DecodeTile& tile) {
    return p.varlen ? p.batch + p.rows_q * p.heads_per_kv() / tile.columns : p.batch;
}

void check_decode(const ForwardProblem& p) {
    require_scale(p, "the sm90 backend");
    check_head_dim("q", p.head_dim, kWidestHead);
    check_head_dim("v", p.head_dim_v, kWidestHead);
    check_strides(p);
    // CTAs, counts and blocks are counted in 32 bits.
    const DecodeTile& tile = kDecodeTiles[decode_choice_of(p).tile_index].tile;
    const auto counts = static_cast<double>(counts_of(p, tile));
    const double heads = static_cast<double>(p.heads_k) * static_cast<double>(p.varlen ? 1 : parts_of(p)),
                 blocks_of_one = static_cast<double>(p.rows_k) / kBlockKeys + 1,
                 listed = counts / std::max(1.0, static_cast<double>(p.batch)) *
                          (blocks_of_one + static_cast<double>(p.batch)),
                 blocks = p.keys == KeyForm::dense || !p.lists_pages ? counts * blocks_of_one : listed,
                 columns = static_cast<double>(p.rows_q) * static_cast<double>(p.heads_per_kv());
    constexpr double kMost = std::numeric_limits<int32_t>::max() / 2;
    if (counts * heads >= kMost || blocks >= kMost || columns >= kMost)
        refuse("q has " + std::to_string(p.batch) + " sequences and k " + std::to_string(p.heads_k) + " heads, and " +
               std::to_string(p.rows_k) + " rows: more than the sm90 backend can count");
}

DecodeChoice decode_choice_of(const ForwardProblem& p) {
    const DecodeVariant variant = variant_of(p);
    const int64_t parts = p.varlen ? 1 : parts_of(p);
    return {tile_index_of(p, variant, columns_of(p)), variant, static_cast<int32_t>(parts)};
}

}  // namespace foveal::sm90
