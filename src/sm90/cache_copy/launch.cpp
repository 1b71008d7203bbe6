// Launches copies of pages, and gathers (cache_copy.cu).
#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "problem/cache_copy.hpp"
#include "sm90/cache_copy/params.hpp"
#include "sm90/device.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kVectorBytes = 16;
constexpr std::array<int32_t, 4> kItemBytes = {kVectorBytes, 4, 2, 1};
constinit cuda::KernelTable<kItemBytes.size()> kernel_table({cuda::Kernel{&copy_kernel<kItemBytes[0]>},
                                                             cuda::Kernel{&copy_kernel<kItemBytes[1]>},
                                                             cuda::Kernel{&copy_kernel<kItemBytes[2]>},
                                                             cuda::Kernel{&copy_kernel<kItemBytes[3]>}});

// Can items of `elements` be read, or written, wherever they begin?
bool is_in_items(const void* data, const Strides& stride, int64_t elements, int64_t element_bytes) {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(elements * element_bytes) == 0 &&
           (stride.batch | stride.row | stride.head) % elements == 0;
}

// The largest item that all is cut into; an element is always one.
int32_t item_bytes_of(const CacheCopy& copy) {
    const int64_t element_bytes = bytes_of(copy.dtype), elements = kVectorBytes / element_bytes;
    const bool in_vectors = std::all_of(copy.streams.begin(), copy.streams.end(), [&](const CopiedRows& rows) {
        return !rows.present() ||
               (rows.head_dim % elements == 0 && is_in_items(rows.from, rows.from_stride, elements, element_bytes) &&
                is_in_items(rows.to, rows.to_stride, elements, element_bytes));
    });
    return in_vectors ? kVectorBytes : static_cast<int32_t>(element_bytes);
}

CopyStream stream_of(const CopiedRows& rows, int64_t elements) {
    CopyStream stream{};
    stream.head_items = 1;  // what is divided by, where there is nothing
    if (!rows.present() || rows.head_dim == 0) return stream;
    stream.from = rows.from;
    stream.to = rows.to;
    stream.from_page_stride = rows.from_stride.batch / elements;
    stream.from_row_stride = rows.from_stride.row / elements;
    stream.from_head_stride = rows.from_stride.head / elements;
    stream.to_page_stride = rows.to_stride.batch / elements;
    stream.to_row_stride = rows.to_stride.row / elements;
    stream.to_head_stride = rows.to_stride.head / elements;
    stream.head_items = static_cast<int32_t>(rows.head_dim / elements);
    stream.items = static_cast<int32_t>(rows.heads) * stream.head_items;
    return stream;
}

}  // namespace

void launch_cache_copy(const CacheCopy& copy, void* stream) {
    const int32_t device = device_of(stream);
    traits_of(device);
    const int32_t item_bytes = item_bytes_of(copy);
    CopyParams params{};
    params.places = copy.places;
    params.rows = copy.rows;
    for (int32_t i = 0; i < kCopyStreams; ++i) {
        params.streams[i] = stream_of(copy.streams[static_cast<size_t>(i)], item_bytes / bytes_of(copy.dtype));
        params.row_items += params.streams[i].items;
    }
    if (params.rows == 0 || params.row_items == 0) return;
    params.cta_rows = std::max(1, kCopyThreads * kCopyItemsOfThread / params.row_items);
    const cuda::CurrentDevice current(device);
    void* arguments[] = {&params};
    constexpr int64_t kMostCtas = INT32_MAX;
    const auto grid = static_cast<int32_t>(std::min((params.rows + params.cta_rows - 1) / params.cta_rows, kMostCtas));
    const auto kernel =
        static_cast<size_t>(std::find(kItemBytes.begin(), kItemBytes.end(), item_bytes) - kItemBytes.begin());
    cuda::launch(kernel_table.function(device, kernel), {grid, kCopyThreads, 0, true}, stream, arguments,
                 "sm90 cache copy kernel");
}

}  // namespace foveal::sm90
