// Which rank has which rows (contract 1.15): spans, checked, and the usual ways to place them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "foveal/foveal_parallel.h"

namespace foveal::parallel {

// Neighbouring rows of one sequence that lie together on one rank, from `row` of its tensors on.
struct Span {
    int32_t rank = 0;
    int64_t sequence = 0;
    int64_t position = 0;
    int64_t rows = 0;
    int64_t row = 0;

    int64_t end() const { return position + rows; }
};

// Where all rows of q, or of k and v, are.
struct Layout {
    std::vector<Span> spans;                 // a rank's in ascending order of row
    std::vector<int64_t> rows_of_rank;       // [ranks]
    std::vector<int64_t> length_of;          // [sequences]
    std::vector<std::vector<Span>> keys_of;  // [sequences]: their spans by position
};

// The caller's list. Throws Error(INVALID_ARGUMENT) naming it unless each row of each sequence is there once.
Layout layout_of(std::span<const foveal_span> spans, int32_t ranks, const char* name);

// The same rows where each `crew_size` neighbouring ranks are one, whose rows lie sequence after sequence in the order
// of their positions; one rank alone has them as they lie.
Layout layout_of_crews(const Layout& layout, int32_t crew_size);

// Rows of a member of a crew, and where they lie among the crew's.
struct Move {
    int32_t member = 0;
    int64_t row = 0;
    int64_t rows = 0;
    int64_t crew_row = 0;
};
// All rows of one crew, of each member in the order in which it has them.
std::vector<Move> moves_of(const Layout& layout, const Layout& crews, int32_t crew, int32_t crew_size);

// The same rows on one rank, sequence after sequence, in order.
Layout gathered_layout(const Layout& layout);

std::vector<foveal_span> place(foveal_placement placement, std::span<const int64_t> lengths, int32_t ranks);

}  // namespace foveal::parallel
