// Which problems are the decode kernel's, and which of its tiles they get.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/decode/tiles.hpp"

namespace foveal::sm90 {

struct DecodeChoice {
    int32_t tile_index = 0;  // into kDecodeTiles
    DecodeVariant variant{};
    int32_t column_parts = 1;  // into which the columns of a KV head are cut, where q is dense
    bool operator==(const DecodeChoice&) const = default;
};

// Few queries over a cache: a dense q of few rows without a bias or a mask. Follows from q's shape and the options
// alone, never from where keys lie; a varlen q's rows only the device knows.
bool decodes(const ForwardProblem& problem);

// Counts of a workspace: of each sequence, or, where q is varlen, each part of one (sequence.hpp).
int64_t counts_of(const ForwardProblem& problem, const DecodeTile& tile);

// Of a problem that decodes: throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_decode(const ForwardProblem& problem);

// Of a problem that decodes.
DecodeChoice decode_choice_of(const ForwardProblem& problem);

}  // namespace foveal::sm90
