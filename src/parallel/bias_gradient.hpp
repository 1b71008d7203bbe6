// The gradient of a bias over ranks: of this rank's rows and the keys of all. No two cells have a row and a key in
// common, so what belongs to one row and one key is written by its cell, where it belongs. What many share (the bias
// has one row, or one key) is summed over cells in f64, and where the row is shared over ranks, in their order: the
// same bits on each. It is rounded once.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/plan.hpp"

namespace foveal::parallel {

class BiasGradient {
   public:
    // dbias: [b|1, heads|1, rows|1, keys of the sequence|1], on the host; absent: not asked.
    BiasGradient(const Plan& plan, const foveal_tensor& dbias);

    void clear();
    // Where a cell's belongs, of the cell's rows and keys. Absent if it is not asked.
    foveal_tensor of_cell(const Stretch& stretch, const Cell& cell);
    // What now stands there counts.
    void add(const Stretch& stretch, const Cell& cell);
    // zeros: i32 [b].
    void store(Communicator& communicator, const foveal_tensor& zeros, void* stream);

   private:
    void add_up_over_ranks(Communicator& communicator, void* stream);

    const foveal_tensor dbias_;  // [b, heads, rows, keys], each 1 where it is shared; or absent
    const int32_t rank_;         // the caller's number of dimensions
    std::vector<double> sums_;   // packed; empty where cells write to dbias
    std::vector<float> cell_;
};

}  // namespace foveal::parallel
