// The kernel of copy_pages and gather: rows of k and v, each from its page to its place, bit for bit.
//
// A CTA takes cta_rows rows, a thread four items of them at a time:
//   1. finds each item's row and where it lies;
//   2. loads all four;
//   3. stores them.
// The memory bus is the bound: each byte is read once and written once.
#include "sm90/cache_copy/params.hpp"

namespace foveal::sm90 {
namespace {

template <int32_t kBytes>
struct ItemOf;
template <>
struct ItemOf<16> {
    using Type = uint4;
};
template <>
struct ItemOf<4> {
    using Type = uint32_t;
};
template <>
struct ItemOf<2> {
    using Type = uint16_t;
};
template <>
struct ItemOf<1> {
    using Type = uint8_t;
};

template <class Item>
struct Place {
    const Item* from;  // null: nothing is copied
    Item* to;
};

template <class Item>
__device__ Place<Item> place_of(const CopyParams& params, int64_t row, int32_t i) {
    const CopyStream& stream = params.streams[i < params.streams[0].items ? 0 : 1];
    if (i >= params.streams[0].items) i -= params.streams[0].items;
    const RowCopy place = params.places.of(row);
    if (place.from_page < 0) return {nullptr, nullptr};
    const int32_t head = i / stream.head_items, in_head = i % stream.head_items;
    const int64_t from = place.from_page * stream.from_page_stride + place.from_row * stream.from_row_stride +
                         head * stream.from_head_stride + in_head;
    const int64_t to = place.to_page * stream.to_page_stride + place.to_row * stream.to_row_stride +
                       head * stream.to_head_stride + in_head;
    return {static_cast<const Item*>(stream.from) + from, static_cast<Item*>(stream.to) + to};
}

// Items first, first + kCopyThreads, ... of the CTA's rows, which begin at `row` and have so many.
template <class Item>
__device__ void copy_items(const CopyParams& params, int64_t row, int32_t items, int32_t first) {
    Item loaded[kCopyItemsOfThread];
    Item* to[kCopyItemsOfThread];
#pragma unroll
    for (int32_t n = 0; n < kCopyItemsOfThread; ++n) {
        const int32_t t = first + n * kCopyThreads;
        to[n] = nullptr;
        if (t >= items) continue;
        const Place<Item> place = place_of<Item>(params, row + t / params.row_items, t % params.row_items);
        if (place.from == nullptr) continue;
        loaded[n] = *place.from;
        to[n] = place.to;
    }
#pragma unroll
    for (int32_t n = 0; n < kCopyItemsOfThread; ++n)
        if (to[n] != nullptr) *to[n] = loaded[n];
}

template <int32_t kItemBytes>
__global__ void __launch_bounds__(kCopyThreads) copy_rows(const __grid_constant__ CopyParams params) {
    using Item = typename ItemOf<kItemBytes>::Type;
    cudaGridDependencySynchronize();  // the kernel before may still write what is read here
    cudaTriggerProgrammaticLaunchCompletion();
    const int64_t stride = int64_t{gridDim.x} * params.cta_rows;
    for (int64_t row = int64_t{blockIdx.x} * params.cta_rows; row < params.rows; row += stride) {
        const int64_t rows_left = params.rows - row;
        const int32_t rows = rows_left < params.cta_rows ? static_cast<int32_t>(rows_left) : params.cta_rows;
        for (int32_t t = static_cast<int32_t>(threadIdx.x); t < rows * params.row_items;
             t += kCopyThreads * kCopyItemsOfThread)
            copy_items<Item>(params, row, rows * params.row_items, t);
    }
}

}  // namespace

template <int32_t kItemBytes>
const void* copy_kernel() {
    return reinterpret_cast<const void*>(&copy_rows<kItemBytes>);
}

template const void* copy_kernel<16>();
template const void* copy_kernel<4>();
template const void* copy_kernel<2>();
template const void* copy_kernel<1>();

}  // namespace foveal::sm90
