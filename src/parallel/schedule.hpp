// What one rank computes and what it receives for it: pure arithmetic on layouts, the same on every rank.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/placement.hpp"

namespace foveal::parallel {

// Which keys a query sees, of whole sequences (contract 1.3).
struct Visibility {
    int64_t left = FOVEAL_UNLIMITED;
    int64_t right = FOVEAL_UNLIMITED;
    int64_t chunk = 0;
    bool top_left = false;
    bool counts_places = false;  // scores depend on where a key stands (slopes, bias, mask), beyond being seen
};

// The keys of one source that a stretch's queries see: one masked forward problem, aligned top-left, whose windows
// allow for where its queries stand.
struct Cell {
    int32_t hop = 0;       // when its keys are here: that of its source before this rank; 0: this rank's own
    int64_t row = 0;       // first row of k and v: in this rank's own tensors, or in the hop's buffer
    int64_t keys = 0;      // 0: the stretch sees no key at all
    int64_t position = 0;  // of the first key in its sequence
    int64_t offset = 0;    // where the stretch's first query stands, in keys behind the cell's first; any sign
    int64_t left = FOVEAL_UNLIMITED;
    int64_t right = FOVEAL_UNLIMITED;
    double pairs = 0;  // (query, key) that are visible, of one head and one of the batch
};

// Neighbouring rows of this rank's q that see keys of the same sources. Every stretch has a cell; the partial results
// of several are merged in their order, which is that of the hops.
struct Stretch {
    int64_t sequence = 0;
    int64_t row = 0;
    int64_t rows = 0;
    std::vector<Cell> cells;
};

// Rows of k and v that travel.
struct Transfer {
    int32_t source = 0;      // rank
    int64_t source_row = 0;  // of its tensors
    int64_t rows = 0;
    int64_t buffer_row = 0;
};

struct Hop {
    std::vector<Transfer> transfers;
    int64_t buffer_rows = 0;
};

struct Schedule {
    std::vector<Stretch> stretches;
    std::vector<Hop> hops;  // [ranks]; all_gather: one, number 0
};

// k and v of rank (rank - h) are there in hop h.
Schedule ring_schedule(const Layout& q, const Layout& k, const Visibility& visibility, int32_t rank);
// All keys that the rank sees, its own too, lie in the buffer in the order of their sequences.
Schedule all_gather_schedule(const Layout& q, const Layout& k, const Visibility& visibility, int32_t rank);

}  // namespace foveal::parallel
