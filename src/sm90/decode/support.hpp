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

// Few queries over a cache. Follows from q's shape, heads, head dimensions and options alone, of a dense q that has few
// rows; or from what the forward kernel has not learnt: keys in pages, of another form than q, at an offset, or a tree.
bool decodes(const ForwardProblem& problem);

// Of a problem that does not decode: throws Error(UNSUPPORTED), naming what stands against it, if it is not for the
// forward kernel either.
void check_form(const ForwardProblem& problem);

// Counts of a workspace: of each sequence, or, where q is varlen, each part of one (sequence.hpp).
int64_t counts_of(const ForwardProblem& problem, const DecodeTile& tile);

// Of a problem that decodes: throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_decode(const ForwardProblem& problem);

// Of a problem that decodes.
DecodeChoice decode_choice_of(const ForwardProblem& problem);

}  // namespace foveal::sm90
