#include "tests/parallel/rank_rows.hpp"

#include <algorithm>
#include <cstring>

namespace foveal_testing {
int64_t bytes_of_element(foveal_dtype dtype) {
    return dtype == FOVEAL_BOOL ? 1 : dtype == FOVEAL_F32 || dtype == FOVEAL_I32 ? 4 : 2;
}

Owned::Owned(const foveal_tensor& like, int dimension, int64_t rows) : view(like) {
    view.shape[dimension] = rows;
    int64_t elements = 1, stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
        view.stride[i] = stride;
        stride *= std::max<int64_t>(view.shape[i], 1);
        elements *= view.shape[i];
    }
    bytes.assign(static_cast<size_t>(elements * bytes_of_element(view.dtype)), std::byte{0xFF});
    view.data = bytes.data();
}

std::vector<std::byte> Owned::poison() {
    std::vector<std::byte> held(bytes.size(), std::byte{0xFF});
    held.swap(bytes);
    view.data = bytes.data();
    return held;
}

void copy_rows(const foveal_tensor& from, int64_t from_row, const foveal_tensor& to, int64_t to_row, int64_t rows,
               int dimension) {
    const int64_t size = bytes_of_element(from.dtype);
    int64_t outer[FOVEAL_MAX_RANK] = {1, 1, 1, 1};
    for (int i = 0; i < from.rank; ++i) outer[i] = i == dimension ? rows : from.shape[i];
    int64_t at[FOVEAL_MAX_RANK];
    for (at[0] = 0; at[0] < outer[0]; ++at[0])
        for (at[1] = 0; at[1] < outer[1]; ++at[1])
            for (at[2] = 0; at[2] < outer[2]; ++at[2])
                for (at[3] = 0; at[3] < outer[3]; ++at[3]) {
                    int64_t source = 0, target = 0;
                    for (int i = 0; i < from.rank; ++i) {
                        source += (at[i] + (i == dimension ? from_row : 0)) * from.stride[i];
                        target += (at[i] + (i == dimension ? to_row : 0)) * to.stride[i];
                    }
                    std::memcpy(static_cast<std::byte*>(to.data) + target * size,
                                static_cast<const std::byte*>(from.data) + source * size, static_cast<size_t>(size));
                }
}

std::vector<SpanRows> rows_of_rank(const std::vector<foveal_span>& spans, int32_t rank,
                                   const std::vector<int64_t>& lengths) {
    std::vector<SpanRows> rows;
    int64_t local = 0;
    for (const foveal_span& span : spans) {
        if (span.rank != rank) continue;
        int64_t before = 0;
        for (int64_t i = 0; i < span.sequence; ++i) before += lengths[static_cast<size_t>(i)];
        rows.push_back({before + span.position, local, span.rows});
        local += span.rows;
    }
    return rows;
}

int64_t count_of(const std::vector<SpanRows>& rows) { return rows.empty() ? 0 : rows.back().local + rows.back().rows; }

Owned gathered(const foveal_tensor& whole, const std::vector<SpanRows>& rows, int dimension) {
    if (whole.rank == 0) return {};
    if (dimension < 0 || whole.shape[dimension] == 1) {  // of a bias or mask: shared by all rows
        Owned all(whole, whole.rank - 1, whole.shape[whole.rank - 1]);
        copy_rows(whole, 0, all.view, 0, whole.shape[0], 0);
        return all;
    }
    Owned local(whole, dimension, count_of(rows));
    for (const SpanRows& span : rows) copy_rows(whole, span.whole, local.view, span.local, span.rows, dimension);
    return local;
}

void scatter(const Owned& local, const std::vector<SpanRows>& rows, const foveal_tensor& whole, int dimension) {
    if (whole.rank == 0) return;
    for (const SpanRows& span : rows) copy_rows(local.view, span.local, whole, span.whole, span.rows, dimension);
}

}  // namespace foveal_testing
