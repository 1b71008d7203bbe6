// The tensors of an operation on a cache, on either backend, and what they must hold afterwards, bit for bit.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/support/cache_case.hpp"
#include "tests/support/strided_tensor.hpp"

namespace foveal_testing {

class CacheData {
   public:
    CacheData(foveal_backend backend, const CacheCase& c);

    // Throws foveal::Error.
    void run(void* stream);
    // What the last run has written wrongly; "" if nothing.
    std::string failure();

   private:
    // New rows or results, row-major [rows, heads, d].
    struct Rows {
        std::vector<float> values;
        std::optional<StridedTensor> tensor;
    };
    struct Cache {
        std::vector<float> values;  // before a run
        std::optional<StridedTensor> tensor;
    };

    void make_pairs();
    void make_rows();
    void make_table(int64_t sequence_pages);
    void make_new_rows();
    StridedTensor integers(foveal_dtype dtype, const Shape& shape, const std::vector<int64_t>& values) const;
    std::vector<float> drawn(int64_t count, uint64_t salt) const;
    std::vector<float> turned(const std::vector<float>& rows, int64_t heads) const;
    std::vector<float> expected_cache(const Cache& cache, const Rows& rows, bool turns) const;
    std::vector<float> expected_rows(const Cache& cache) const;
    int64_t row_elements() const { return c_.heads_k * c_.channels; }

    foveal_backend backend_;
    CacheCase c_;
    int64_t pages_;
    std::vector<int64_t> slots_;  // of each row that is written or read; copy_pages: src, dst of each pair
    std::vector<float> cos_, sin_;
    Cache k_cache_, v_cache_;
    Rows k_, v_, q_, q_out_;
    std::optional<StridedTensor> numbers_, positions_, ends_, cos_tensor_, sin_tensor_;
};

}  // namespace foveal_testing
