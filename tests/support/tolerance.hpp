// The verdict of contract 1.10: a result against the float64 oracle, measured by what the textbook forward in the
// input's precision achieves. There is no epsilon to choose.
#pragma once

#include <cstdint>
#include <string>

#include "tests/support/case.hpp"

namespace foveal_testing {

struct Element {
    int64_t sequence = 0, head = 0, row = 0, channel = 0;
    double got = 0, oracle = 0, reference = 0;
};

// Sums over the rows seen so far; one a thread, merged at the end.
class ErrorStatistics {
   public:
    explicit ErrorStatistics(foveal_dtype dtype) : dtype_(dtype) {}

    // One row of channels. got, reference: values of the output type.
    void add_row(int64_t sequence, int64_t head, int64_t row, int64_t channels, const float* got, const double* oracle,
                 const float* reference);
    // Another result of the reference for a row that has been added; every row has as many.
    void add_reference(int64_t channels, const double* oracle, const float* reference);
    // e4m3_sums: scores are sums of tensor cores over e4m3.
    void add_lse(int64_t sequence, int64_t head, int64_t row, double got, double oracle, bool e4m3_sums = false);
    void merge(const ErrorStatistics& other);

    foveal_dtype dtype_;
    int64_t rows = 0;
    int64_t rows_rounded = 0;        // that the reference does not have exactly, as it has rows of one key or none
    double max_error = 0;            // |got - oracle|
    double max_reference_error = 0;  // |reference - oracle|
    double max_rounding = 0;         // |oracle rounded to the output type - oracle|
    double squared_error = 0;
    double squared_reference_error = 0;  // of all results of the reference
    int64_t references = 0;              // rows, over all results of the reference
    double squared_oracle = 0;
    Element worst;
    int64_t mismatched = 0;  // inf or NaN where the oracle has something else, or the reverse
    Element first_mismatch;
    int64_t reference_not_finite = 0;  // the oracle is finite but the reference overflowed: a case that proves nothing

    int64_t lse_rows = 0;
    double lse_excess = 0;  // max of |got - oracle| / (2e-5 (1 + |oracle|)), of e4m3_sums 2^-10; infinite for an inf or
                            // NaN out of place
    Element lse_worst;
};

struct Verdict {
    bool pass = false;
    std::string failure;  // "" if pass; else what is violated and the worst element
    int64_t rows_checked = 0;
    double max_error = 0;
    double max_reference_error = 0;
    double norm_error = 0;  // |out - oracle| / |oracle|, Euclidean
    double norm_reference_error = 0;
    double lse_excess = 0;  // 1 is the limit

    // "rows 128  max 1.2e-3 (ref 1.1e-3)  norm 1.6e-3 (ref 1.6e-3)  lse 0.03"
    std::string summary() const;
};

Verdict judge(const ErrorStatistics& statistics);

}  // namespace foveal_testing
