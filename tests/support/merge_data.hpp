// The tensors of a merge on either backend, what its parts hold, and the judge of its result.
#pragma once

#include <vector>

#include "tests/support/merge_case.hpp"
#include "tests/support/strided_tensor.hpp"
#include "tests/support/tolerance.hpp"

namespace foveal_testing {

// The values of partial results, outs rounded to the case's type: out [rows of out][channels], lse as lse_shape().
struct PartialValues {
    std::vector<std::vector<float>> outs, lses;
};

// Normal values; about one part in six of a row is empty, with NaN in its out, and all of row 0 are.
PartialValues draw_parts(const MergeCase& c, uint64_t seed);

struct MergeData {
    MergeData(foveal_backend backend, const MergeCase& c, const PartialValues& values);

    std::vector<foveal::Part> parts();

    std::vector<StridedTensor> outs, lses;
    StridedTensor out, lse;
};

// Against the same formula in float64, each `every`-th row; out and lse as PartialValues has them. lse may be empty.
Verdict judge_merged(const MergeCase& c, const PartialValues& values, const std::vector<float>& out,
                     const std::vector<float>& lse, int64_t every = 1);

}  // namespace foveal_testing
