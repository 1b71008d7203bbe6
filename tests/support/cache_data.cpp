// Built without contraction, as the library's own append is: the contract rounds every operation for itself.
#include "tests/support/cache_data.hpp"

#include <algorithm>
#include <cmath>

#include "tests/support/input_values.hpp"

namespace foveal_testing {
namespace {

using Operation = CacheCase::Operation;

int64_t pages_for(int64_t rows, int64_t page_size) { return (rows + page_size - 1) / page_size; }

// Numbers below `count` in an order of their own.
int64_t scattered(int64_t i, int64_t count) { return (i * 7 + i / 5) % std::max<int64_t>(count, 1); }

float rounded(foveal_dtype dtype, float x) {
    if (dtype == FOVEAL_F32) return x;
    return dtype == FOVEAL_BF16 ? bf16_to_float(float_to_bf16(x)) : f16_to_float(float_to_f16(x));
}

}  // namespace

CacheData::CacheData(foveal_backend backend, const CacheCase& c) : backend_(backend), c_(c) {
    const int64_t sequence_pages = pages_for(c.rows, c.page_size);
    pages_ = c.operation == Operation::kCopyPages ? 2 * c.rows : (c.appends() ? 2 : 1) * c.batch * sequence_pages;
    const Shape shape{pages_, c.page_size, c.heads_k, c.channels};
    for (Cache* cache : {&k_cache_, &v_cache_}) {
        cache->values = drawn(elements_of(shape), cache == &k_cache_ ? 1 : 2);
        cache->tensor.emplace(backend, c.dtype, shape);
        cache->tensor->set(cache->values);
    }
    if (c.operation == Operation::kCopyPages) {
        make_pairs();
    } else {
        make_rows();
        c.appends() ? make_new_rows() : make_table(sequence_pages);
    }
}

// From the first half of the pages to the other, backwards.
void CacheData::make_pairs() {
    for (int64_t i = 0; i < c_.rows; ++i) slots_.insert(slots_.end(), {scattered(i, c_.rows), 2 * c_.rows - 1 - i});
    numbers_.emplace(integers(FOVEAL_I32, {c_.rows, 2}, slots_));
}

// Page n of sequence i is page n * b + i, or, of an append, every other of twice as many.
void CacheData::make_rows() {
    for (int64_t i = 0; i < c_.batch; ++i)
        for (int64_t row = 0; row < c_.rows; ++row) {
            const int64_t page = row / c_.page_size * c_.batch + i;
            slots_.push_back((c_.appends() ? 2 * page + 1 : page) * c_.page_size + row % c_.page_size);
        }
    for (Rows* rows : {&k_, &v_})
        rows->tensor.emplace(backend_, c_.dtype, Shape{c_.batch * c_.rows, c_.heads_k, c_.channels});
}

void CacheData::make_table(int64_t sequence_pages) {
    std::vector<int64_t> table, ends;
    for (int64_t i = 0; i < c_.batch; ++i)
        for (int64_t n = 0; n < sequence_pages; ++n) table.push_back(n * c_.batch + i);
    for (int64_t i = 0; i <= c_.batch; ++i) ends.push_back(i * c_.rows);
    numbers_.emplace(integers(FOVEAL_I32, {c_.batch, sequence_pages}, table));
    ends_.emplace(integers(FOVEAL_I32, {c_.batch + 1}, ends));
}

void CacheData::make_new_rows() {
    const int64_t rows = c_.batch * c_.rows, half = c_.channels / 2;
    const Shape q_shape{rows, c_.heads_q, c_.channels};
    q_.tensor.emplace(backend_, c_.dtype, q_shape);
    q_out_.tensor.emplace(backend_, c_.dtype, q_shape);
    for (Rows* part : {&k_, &v_, &q_}) {
        const int64_t heads = part == &q_ ? c_.heads_q : c_.heads_k;
        part->values = drawn(rows * heads * c_.channels, part == &k_ ? 3 : part == &v_ ? 4 : 5);
        part->tensor->set(part->values);
    }
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < rows; ++i) positions.push_back(scattered(i, rows));
    numbers_.emplace(integers(FOVEAL_I64, {rows}, slots_));
    positions_.emplace(integers(FOVEAL_I32, {rows}, positions));
    for (int64_t i = 0; i < rows * half; ++i) {
        const double angle = 0.37 * static_cast<double>(i % 1009);
        cos_.push_back(static_cast<float>(std::cos(angle))), sin_.push_back(static_cast<float>(std::sin(angle)));
    }
    cos_tensor_.emplace(backend_, FOVEAL_F32, Shape{rows, half});
    sin_tensor_.emplace(backend_, FOVEAL_F32, Shape{rows, half});
    cos_tensor_->set(cos_), sin_tensor_->set(sin_);
}

StridedTensor CacheData::integers(foveal_dtype dtype, const Shape& shape, const std::vector<int64_t>& values) const {
    StridedTensor tensor(backend_, dtype, shape);
    tensor.set({values.begin(), values.end()});
    return tensor;
}

// Between -1 and 1, rounded to the case's type.
std::vector<float> CacheData::drawn(int64_t count, uint64_t salt) const {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
        const auto bits = static_cast<int32_t>(mix64(c_.seed * 31 + salt * 1000003 + i) >> 33);
        values[i] = rounded(c_.dtype, std::ldexp(static_cast<float>(bits), -30) - 1);
    }
    return values;
}

void CacheData::run(void* stream) {
    const auto backend = static_cast<foveal::Backend>(backend_);
    const foveal::Tensor k_cache = k_cache_.tensor->view(), v_cache = v_cache_.tensor->view();
    if (c_.operation == Operation::kCopyPages)
        return foveal::copy_pages(
            {.k_cache = k_cache, .v_cache = v_cache, .pairs = numbers_->view(), .backend = backend}, stream);
    if (c_.operation == Operation::kGather)
        return foveal::gather({.k_cache = k_cache,
                               .v_cache = v_cache,
                               .k = k_.tensor->view(),
                               .v = v_.tensor->view(),
                               .cu_seqlens_k = ends_->view(),
                               .block_table = numbers_->view(),
                               .backend = backend},
                              stream);
    foveal::append({.k = k_.tensor->view(),
                    .v = v_.tensor->view(),
                    .k_cache = k_cache,
                    .v_cache = v_cache,
                    .slot_mapping = numbers_->view(),
                    .cos = cos_tensor_->view(),
                    .sin = sin_tensor_->view(),
                    .positions = positions_->view(),
                    .q = q_.tensor->view(),
                    .q_out = q_out_.tensor->view(),
                    .backend = backend},
                   stream);
}

// Half-split pairs of each row, by the angles of its position.
std::vector<float> CacheData::turned(const std::vector<float>& rows, int64_t heads) const {
    std::vector<float> result = rows;
    const int64_t half = c_.channels / 2, count = c_.batch * c_.rows;
    for (int64_t row = 0; row < count; ++row)
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t i = 0; i < half; ++i) {
                const auto a = static_cast<size_t>((row * heads + head) * c_.channels + i),
                           b = a + static_cast<size_t>(half);
                const auto angle = static_cast<size_t>(scattered(row, count) * half + i);
                const float x_cos = rows[a] * cos_[angle], y_sin = rows[b] * sin_[angle];
                const float y_cos = rows[b] * cos_[angle], x_sin = rows[a] * sin_[angle];
                result[a] = x_cos - y_sin, result[b] = y_cos + x_sin;
            }
    return result;
}

std::vector<float> CacheData::expected_cache(const Cache& cache, const Rows& rows, bool turns) const {
    std::vector<float> expected = cache.values;
    const int64_t n = row_elements();
    if (c_.operation == Operation::kCopyPages)
        for (size_t i = 0; i < slots_.size(); i += 2)
            std::copy_n(cache.values.begin() + slots_[i] * c_.page_size * n, c_.page_size * n,
                        expected.begin() + slots_[i + 1] * c_.page_size * n);
    if (!c_.appends()) return expected;
    const std::vector<float> values = turns ? turned(rows.values, c_.heads_k) : rows.values;
    for (size_t i = 0; i < slots_.size(); ++i)
        std::copy_n(values.begin() + static_cast<int64_t>(i) * n, n, expected.begin() + slots_[i] * n);
    return expected;
}

std::vector<float> CacheData::expected_rows(const Cache& cache) const {
    std::vector<float> expected;
    for (const int64_t slot : slots_) {
        const auto from = cache.values.begin() + slot * row_elements();
        expected.insert(expected.end(), from, from + row_elements());
    }
    return expected;
}

std::string CacheData::failure() {
    std::string found;
    const auto expect = [&](const char* name, StridedTensor& tensor, const std::vector<float>& expected) {
        const std::vector<std::byte> bytes = tensor.bytes();
        tensor.set(expected);
        if (tensor.bytes() != bytes) found += std::string(name) + " does not hold what it must\n";
    };
    expect("k_cache", *k_cache_.tensor, expected_cache(k_cache_, k_, true));
    expect("v_cache", *v_cache_.tensor, expected_cache(v_cache_, v_, false));
    if (c_.operation == Operation::kGather) {
        expect("k", *k_.tensor, expected_rows(k_cache_));
        expect("v", *v_.tensor, expected_rows(v_cache_));
    }
    if (c_.appends()) expect("q_out", *q_out_.tensor, turned(q_.values, c_.heads_q));
    return found;
}

}  // namespace foveal_testing
