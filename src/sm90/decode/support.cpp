#include "sm90/decode/support.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "sm90/tensors.hpp"

namespace foveal::sm90 {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(FOVEAL_UNSUPPORTED, message); }

constexpr int32_t kWidestHead = kDecodeTiles[kDecodeTileCount - 1].tile.head_dim;

// The most rows of a sequence that are few, and the most parts of their columns, each of which reads K and V anew:
// beyond that the forward kernel, whose tiles hold more columns, reads less. A single row is always one of few.
constexpr int32_t kFewRows = 16, kFewParts = 2;

// Of the tiles for these head dimensions and options: of a single row the first that holds its columns, or else the
// last; of several rows the last, so that how many they are decides no bit.
int32_t tile_index_of(const ForwardProblem& p, DecodeVariant variant, int64_t rows) {
    int32_t last = -1;
    for (int32_t i = 0; i < kDecodeTileCount; ++i) {
        const DecodeTile& tile = kDecodeTiles[i].tile;
        const bool holds = p.head_dim <= tile.head_dim && p.head_dim_v <= tile.head_dim;
        if (!holds || !kDecodeTiles[i].serves(variant)) continue;
        if (last >= 0 && tile.head_dim != kDecodeTiles[last].tile.head_dim) break;
        last = i;
        if (rows <= 1 && p.heads_per_kv() <= tile.columns) break;
    }
    if (last < 0) throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 tile for this decode");
    return last;
}

bool is_plain(const ForwardProblem& p) {
    const bool positive_scale = p.scale >= std::numeric_limits<float>::min();
    return positive_scale && p.softcap == 0 && !p.has_alibi && !p.has_tree;
}

DecodeVariant variant_of(const ForwardProblem& p) {
    const int64_t widest = std::max(p.head_dim, p.head_dim_v);
    const bool has_plain = p.keys_dtype != DType::e4m3 || (widest > 64 && widest <= 128);  // dequantises_with()
    return is_plain(p) && has_plain ? DecodeVariant::plain : DecodeVariant::options;
}

bool dequantises(const ForwardProblem& p) { return p.keys_dtype == DType::e4m3; }

// Into which the columns of a KV head are cut.
int64_t parts_of(const ForwardProblem& p, int32_t tile_index, int64_t rows) {
    const int64_t at_once = kDecodeTiles[tile_index].tile.columns;
    return std::max<int64_t>((rows * p.heads_per_kv() + at_once - 1) / at_once, 1);
}

bool can_decode(const ForwardProblem& p) {
    const bool has_matrix = p.has_bias || p.has_mask;
    return p.dtype != DType::f32 && p.out_dtype == p.dtype && p.head_dim <= kWidestHead &&
           p.head_dim_v <= kWidestHead && !has_matrix && !p.drops_weights();
}

// May a sequence of a varlen q have from `least` to `most` rows? The host knows how many all have together.
bool may_have_rows(const ForwardProblem& p, int64_t least, int64_t most) {
    const bool is_known = p.batch == 1 && !p.has_seqused_q;
    return p.batch > 0 && p.rows_q >= least && (!is_known || p.rows_q <= most);
}

}  // namespace

bool decodes(const ForwardProblem& p) { return can_decode(p) && !p.varlen && p.rows_q <= few_rows_of(p); }

DecodeChoice decode_choice_of(const ForwardProblem& p) {
    const DecodeVariant variant = variant_of(p);
    const int32_t tile = tile_index_of(p, variant, p.rows_q);
    return {tile, variant, static_cast<int32_t>(parts_of(p, tile, p.rows_q)), 0, 0, dequantises(p)};
}

int32_t few_rows_of(const ForwardProblem& p) {
    int32_t rows = kFewRows;
    while (rows > 1 && parts_of(p, tile_index_of(p, variant_of(p), rows), rows) > kFewParts) --rows;
    return rows;
}

bool may_have_many_rows(const ForwardProblem& p) {
    return may_have_rows(p, few_rows_of(p) + 1, std::numeric_limits<int64_t>::max());
}

std::vector<DecodeChoice> decode_choices_of_varlen(const ForwardProblem& p) {
    // Over packed keys, those of prompts, the forward kernel has all rows: it knows no others there (varlen/plan.hpp).
    if (!p.varlen || p.keys == KeyForm::varlen || !can_decode(p)) return {};
    const DecodeVariant variant = variant_of(p);
    const int32_t few = few_rows_of(p), one = tile_index_of(p, variant, 1), several = tile_index_of(p, variant, 2);
    const bool e4m3 = dequantises(p);
    std::vector<DecodeChoice> choices = {{one, variant, 1, 1, one == several ? few : 1, e4m3}};
    if (one != several && few > 1) choices.push_back({several, variant, 1, 2, few, e4m3});
    std::erase_if(choices, [&](const DecodeChoice& c) { return !may_have_rows(p, c.least_rows, c.most_rows); });
    return choices;
}

int32_t most_parts_of(const ForwardProblem& p, const DecodeChoice& choice) {
    return p.varlen ? static_cast<int32_t>(parts_of(p, choice.tile_index, choice.most_rows)) : 1;
}

void check_decode(const ForwardProblem& p, const DecodeChoice& choice) {
    require_scale(p, "the sm90 backend");
    check_head_dim("q", p.head_dim, kWidestHead);
    check_head_dim("v", p.head_dim_v, kWidestHead);
    check_keys_in_e4m3(p);
    if (choice.dequantises && choice.tile().head_dim > kWidestE4m3Head)
        refuse("k's head dimension is " + std::to_string(std::max(p.head_dim, p.head_dim_v)) +
               "; in e4m3, under few rows of q, the sm90 backend supports up to " + std::to_string(kWidestE4m3Head));
    check_strides(p);
    // CTAs, counts and blocks are counted in 32 bits.
    const double batch = static_cast<double>(p.batch), parts = most_parts_of(p, choice),
                 heads = static_cast<double>(p.heads_k) * choice.column_parts,
                 blocks_of_one = static_cast<double>(p.rows_k) / kBlockKeys + 1,
                 rows = static_cast<double>(p.varlen ? choice.most_rows : p.rows_q);
    const bool has_own_rows = p.keys == KeyForm::dense || (p.keys == KeyForm::paged && !p.lists_pages);
    const double blocks = parts * (has_own_rows ? batch * blocks_of_one : batch + blocks_of_one);
    constexpr double kMost = std::numeric_limits<int32_t>::max() / 2;
    if (batch * parts * heads >= kMost || blocks >= kMost || rows * static_cast<double>(p.heads_per_kv()) >= kMost)
        refuse("q has " + std::to_string(p.batch) + " sequences and k " + std::to_string(p.heads_k) + " heads, and " +
               std::to_string(p.rows_k) + " rows: more than the sm90 backend can count");
}

}  // namespace foveal::sm90
