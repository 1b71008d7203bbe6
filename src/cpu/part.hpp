// A sequence with few query rows (decoding) is cut into parts of its keys, so that all threads have work and K and V
// pass by once: each part gives every query a maximum, a sum and an unnormalised output, and the last step merges them
// in the order of their keys.
#pragma once

#include <cstdint>

#include "cpu/tile.hpp"
#include "problem/mask.hpp"

namespace foveal::cpu {

// What a part's keys make of a group's queries. Rows of out are out_pitch() apart.
struct Part {
    float* max;  // [queries], -inf: the query sees none of the keys
    float* sum;  // [queries]: of exp(scale * (score - max)) * 2^-bias
    float* out;  // [queries, d_v]: sum of such exponentials times v
    int64_t pitch;
};

// Floats that a part needs, a multiple of a cache line.
int64_t part_floats(int64_t queries, int64_t head_dim_v);

// The part that lies at `memory`, which is aligned to 64 bytes and has part_floats().
Part part_at(float* memory, int64_t queries, int64_t head_dim_v);

// Up to how many queries of a group read K and V as they lie (attend_few_queries). More fill the vectors of a tile,
// which pays for packing K and V.
int64_t most_few_queries();

// Floats of workspace that attend_few_queries needs. dequantised: the channels of K or of V, whichever are more, where
// they are in e4m3; else 0.
int64_t few_queries_workspace_floats(int64_t queries, int64_t head_dim, int64_t dequantised);

// Fills a part of all the group's queries, at most most_few_queries(). workspace: aligned to 64 bytes; needs no
// initialisation.
void attend_few_queries(const HeadGroup& group, Range keys, const Part& part, float* workspace);

// Writes out (and lse) of all the group's queries from `count` parts at distance part_floats() from each other. Uses
// the first one's memory.
void merge_parts(const HeadGroup& group, float* parts, int64_t count);

}  // namespace foveal::cpu
