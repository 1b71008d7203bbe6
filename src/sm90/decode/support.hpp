// Which problems are the decode kernel's, and which of its tiles they get.
#pragma once

#include <cstdint>

#include "problem/forward.hpp"
#include "sm90/decode/tiles.hpp"

namespace foveal::sm90 {

struct DecodeChoice {
    int32_t tile_index = 0;  // into kDecodeTiles
    DecodeVariant variant{};
    int32_t column_parts = 1;  // into which the columns of a KV head are cut
    bool operator==(const DecodeChoice&) const = default;
};

// Few queries over a cache: keys in pages, or of lengths that the device knows, or of a layout or at an offset that the
// forward kernel has not learnt yet.
bool decodes(const ForwardProblem& problem);

// Of a problem with keys in pages that does not decode: throws Error(UNSUPPORTED), naming what stands against it.
void refuse_pages(const ForwardProblem& problem);

// Of a problem that decodes: throws Error(UNSUPPORTED), naming the argument, the value and what is supported.
void check_decode(const ForwardProblem& problem);

// Of a problem that decodes.
DecodeChoice decode_choice_of(const ForwardProblem& problem);

}  // namespace foveal::sm90
