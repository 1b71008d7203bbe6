// Which problems are the decode kernel's, and which of its tiles they get.
#pragma once

#include <cstdint>
#include <vector>

#include "problem/forward.hpp"
#include "sm90/decode/tiles.hpp"

namespace foveal::sm90 {

// Is there a kernel of this tile for keys in e4m3? With options up to d 256 (at 512 registers would be spilled), and
// without at d 128.
inline constexpr int32_t kWidestE4m3Head = 256;
constexpr bool dequantises_with(const DecodeTileEntry& entry, DecodeVariant variant) {
    const bool is_there = variant == DecodeVariant::plain ? entry.tile.head_dim == 128 : entry.tile.head_dim <= 256;
    return is_there && entry.serves(variant);
}

struct DecodeChoice {
    int32_t tile_index = 0;  // into kDecodeTiles
    DecodeVariant variant{};
    int32_t column_parts = 1;  // into which the columns of a KV head are cut, where q is dense
    // Where q is varlen: it takes the sequences of so many rows, and leaves others to other kernels.
    int32_t least_rows = 0, most_rows = 0;
    bool dequantises = false;  // keys are in e4m3
    bool operator==(const DecodeChoice&) const = default;

    constexpr DecodeTile tile() const {
        const DecodeTile& tile = kDecodeTiles[tile_index].tile;
        return dequantises ? for_e4m3(tile) : tile;
    }
};

// Few queries over a cache: a dense q of few rows without a bias, a mask or dropout. Follows from q's shape and the
// options alone, never from where keys lie; a varlen q's rows only the device knows.
bool decodes(const ForwardProblem& problem);

// Of a problem that decodes.
DecodeChoice decode_choice_of(const ForwardProblem& problem);

// The same of a varlen q: a sequence goes where a dense q of as many rows would, so there is a kernel for one row and
// one for several that are few, but for those that no sequence has as far as the host knows. None: nothing to decode,
// or keys are packed as q is.
std::vector<DecodeChoice> decode_choices_of_varlen(const ForwardProblem& problem);

// Of a varlen q that the decode kernel has a part of: the most rows of a sequence that are few; has a sequence more, as
// far as the host knows?
int32_t few_rows_of(const ForwardProblem& problem);
bool may_have_many_rows(const ForwardProblem& problem);

// Most parts of one sequence, where q is varlen; else 1.
int32_t most_parts_of(const ForwardProblem& problem, const DecodeChoice& choice);

// Of a kernel that decodes (a part of) the problem: throws Error(UNSUPPORTED), naming the argument, the value and what
// is supported.
void check_decode(const ForwardProblem& problem, const DecodeChoice& choice);

}  // namespace foveal::sm90
