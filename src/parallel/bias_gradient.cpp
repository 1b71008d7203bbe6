#include "parallel/bias_gradient.hpp"

#include <algorithm>
#include <cstring>

#include "parallel/exchange.hpp"
#include "parallel/shards.hpp"

namespace foveal::parallel {
namespace {

constexpr int kRows = 2, kKeys = 3;

// With the dimensions that are missing of the first.
foveal_tensor with_all_dimensions(foveal_tensor t) {
    if (t.rank == 0) return t;
    for (; t.rank < FOVEAL_MAX_RANK; ++t.rank) {
        std::copy_backward(t.shape, t.shape + t.rank, t.shape + t.rank + 1);
        std::copy_backward(t.stride, t.stride + t.rank, t.stride + t.rank + 1);
        t.shape[0] = 1;
        t.stride[0] = 0;
    }
    return t;
}

size_t elements_of(const foveal_tensor& t) {
    int64_t elements = 1;
    for (int i = 0; i < t.rank; ++i) elements *= t.shape[i];
    return static_cast<size_t>(elements);
}

foveal_tensor part_of_cell(const foveal_tensor& t, const Stretch& stretch, const Cell& cell) {
    return part_of_matrix(t, stretch.row, stretch.rows, cell.position, cell.keys);
}

}  // namespace

BiasGradient::BiasGradient(const Plan& plan, const foveal_tensor& dbias)
    : dbias_(with_all_dimensions(dbias)), rank_(dbias.rank) {
    if (rank_ == 0 || (dbias_.shape[kRows] != 1 && dbias_.shape[kKeys] != 1)) return;
    sums_.resize(elements_of(dbias_));
    size_t most = 0;
    for (const Stretch& stretch : plan.schedule.stretches)
        for (const Cell& cell : stretch.cells) most = std::max(most, elements_of(part_of_cell(dbias_, stretch, cell)));
    cell_.resize(most);
}

void BiasGradient::clear() {
    if (rank_ == 0) return;
    if (!sums_.empty()) return std::fill(sums_.begin(), sums_.end(), 0.0);
    const int64_t element = bytes_of(dtype_of(dbias_));
    for (int64_t b = 0; b < dbias_.shape[0]; ++b)
        for (int64_t head = 0; head < dbias_.shape[1]; ++head)
            for (int64_t row = 0; row < dbias_.shape[kRows]; ++row)
                std::memset(static_cast<std::byte*>(dbias_.data) +
                                (b * dbias_.stride[0] + head * dbias_.stride[1] + row * dbias_.stride[kRows]) * element,
                            0, static_cast<size_t>(dbias_.shape[kKeys] * element));
}

foveal_tensor BiasGradient::of_cell(const Stretch& stretch, const Cell& cell) {
    if (rank_ == 0) return {};
    foveal_tensor part = part_of_cell(dbias_, stretch, cell);
    if (!sums_.empty())
        part = packed_tensor(reinterpret_cast<std::byte*>(cell_.data()), FOVEAL_F32, 0,
                             {part.shape[0], part.shape[1], part.shape[kRows], part.shape[kKeys]});
    // As many dimensions as the bias has.
    const int missing = FOVEAL_MAX_RANK - rank_;
    std::copy(part.shape + missing, part.shape + FOVEAL_MAX_RANK, part.shape);
    std::copy(part.stride + missing, part.stride + FOVEAL_MAX_RANK, part.stride);
    part.rank = rank_;
    return part;
}

void BiasGradient::add(const Stretch& stretch, const Cell& cell) {
    if (sums_.empty()) return;
    const foveal_tensor part = part_of_cell(dbias_, stretch, cell);
    const int64_t first_row = dbias_.shape[kRows] == 1 ? 0 : stretch.row,
                  first_key = dbias_.shape[kKeys] == 1 ? 0 : cell.position;
    const float* added = cell_.data();
    for (int64_t matrix = 0; matrix < part.shape[0] * part.shape[1]; ++matrix)
        for (int64_t row = 0; row < part.shape[kRows]; ++row) {
            double* const to =
                sums_.data() + (matrix * dbias_.shape[kRows] + first_row + row) * dbias_.shape[kKeys] + first_key;
            for (int64_t key = 0; key < part.shape[kKeys]; ++key) to[key] += static_cast<double>(*added++);
        }
}

// A block at a time, so that what arrives of all ranks takes little memory.
void BiasGradient::add_up_over_ranks(Communicator& communicator, void* stream) {
    constexpr size_t kBlock = 1 << 16;
    const int32_t ranks = communicator.ranks();
    std::vector<double> all(static_cast<size_t>(ranks) * std::min(kBlock, sums_.size()));
    for (size_t first = 0; first < sums_.size(); first += kBlock) {
        const size_t count = std::min(kBlock, sums_.size() - first), bytes = count * sizeof(double);
        communicator.begin();
        for (int32_t rank = 0; rank < ranks; ++rank) communicator.send(&sums_[first], bytes, rank, stream);
        for (int32_t rank = 0; rank < ranks; ++rank)
            communicator.recv(&all[static_cast<size_t>(rank) * count], bytes, rank, stream);
        communicator.end(stream);
        for (size_t i = 0; i < count; ++i) {
            double total = 0;
            for (size_t rank = 0; rank < static_cast<size_t>(ranks); ++rank) total += all[rank * count + i];
            sums_[first + i] = total;
        }
    }
}

void BiasGradient::store(Communicator& communicator, const foveal_tensor& zeros, void* stream) {
    if (sums_.empty()) return;
    if (dbias_.shape[kRows] == 1) add_up_over_ranks(communicator, stream);
    std::vector<float> rounded(sums_.begin(), sums_.end());
    const foveal_tensor from =
        packed_tensor(reinterpret_cast<std::byte*>(rounded.data()), FOVEAL_F32, 0,
                      {dbias_.shape[0], dbias_.shape[1], dbias_.shape[kRows], dbias_.shape[kKeys]});
    copy_rows({from, {}}, {dbias_, {}}, rows_of(zeros, 0, 0, dbias_.shape[0]), FOVEAL_BACKEND_CPU, nullptr);
}

}  // namespace foveal::parallel
