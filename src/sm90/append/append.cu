// The append kernel (contract 1.12): rows of k, v and q, turned by their rotary embedding, scaled, converted and
// stored.
//
// A CTA takes cta_rows new rows, a thread one item of them after the other:
//   1. finds the item's place in the cache, which no other step waits for but the store;
//   2. loads the item, one or two vectors;
//   3. turns its pairs, by cos and sin of the row's position;
//   4. divides by the scale, rounds and stores.
// The memory bus is the bound: a row is read once and written once, cos and sin come from the caches.
#include "sm90/append/e4m3_format.cuh"
#include "sm90/append/items.cuh"
#include "sm90/append/params.hpp"

namespace foveal::sm90 {
namespace {

// Step 4.
template <int32_t kSize>
__device__ void divide(float (&x)[kSize], const float* scale) {
    if (scale == nullptr) return;
    const float divisor = *scale;
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n) x[n] = __fdiv_rn(x[n], divisor);
}

// Steps 2 to 4 of one item, whose row ends up as kTo.
template <class Config, DType kTo>
__device__ void write_item(const AppendParams& params, const AppendStream& stream, const Item& item, int64_t position,
                           void* to, const float* scale) {
    Turned<Config> turned;
    load_item<Config>(params, stream, item, position, turned);
    divide(turned.x, scale);
    store<kTo>(turned.x, to, turned.first);
    if (!turned.is_pair) return;
    divide(turned.y, scale);
    store<kTo>(turned.y, to, turned.second);
}

// A new row: [outer, row] of [b, rows].
struct NewRow {
    int64_t outer, row;
    AppendPlace place;
};

__device__ const float* scale_at(const AppendStream& stream, const AppendPlace& place, int32_t head) {
    if (stream.scale == nullptr) return nullptr;
    return stream.scale + place.page * stream.scale_page_stride + place.row * stream.scale_row_stride +
           head * stream.scale_head_stride;
}

// Item `i` of the new row, if it is one of k, of v or of q; else i is what is left of it.
template <class Config, DType kTo, bool kInCache>
__device__ bool append_to(const AppendParams& params, const AppendStream& stream, const NewRow& at, int32_t& i) {
    const int32_t items = stream.heads * stream.items;
    if (i >= items) {
        i -= items;
        return false;
    }
    if (kInCache && at.place.page < 0) return true;
    const int32_t head = i / stream.items;
    const int64_t from =
        at.outer * stream.from_batch_stride + at.row * stream.from_row_stride + head * stream.from_head_stride;
    const int64_t to = (kInCache ? at.place.page : at.outer) * stream.to_batch_stride +
                       (kInCache ? at.place.row : at.row) * stream.to_row_stride + head * stream.to_head_stride;
    const Item item{i % stream.items, static_cast<const typename Format<Config::kIn>::Element*>(stream.from) + from};
    write_item<Config, kTo>(params, stream, item, at.place.position,
                            static_cast<typename Format<kTo>::Element*>(stream.to) + to,
                            scale_at(stream, at.place, head));
    return true;
}

template <class Config>
__device__ void append_item(const AppendParams& params, int64_t outer, int64_t row, int32_t i) {
    const NewRow at{outer, row, params.places.of(outer, row)};
    const auto& [k, v, q] = params.streams;
    if (append_to<Config, Config::kCache, true>(params, k, at, i)) return;
    if (append_to<Config, Config::kCache, true>(params, v, at, i)) return;
    append_to<Config, Config::kIn, false>(params, q, at, i);
}

template <class Config>
__global__ void __launch_bounds__(kAppendThreads) append_rows(const __grid_constant__ AppendParams params) {
    cudaGridDependencySynchronize();  // the kernel before may still write what is read here
    cudaTriggerProgrammaticLaunchCompletion();
    const int64_t first_row = int64_t{blockIdx.x} * params.cta_rows;
    const int64_t rows_left = params.all_rows - first_row;
    const int32_t rows = rows_left < params.cta_rows ? static_cast<int32_t>(rows_left) : params.cta_rows;
    for (int32_t t = static_cast<int32_t>(threadIdx.x); t < rows * params.row_items; t += kAppendThreads) {
        const int64_t i = first_row + t / params.row_items;
        append_item<Config>(params, i / params.places.rows, i % params.places.rows, t % params.row_items);
    }
}

}  // namespace

template <DType kIn, DType kCache, bool kPacked>
const void* append_kernel() {
    return reinterpret_cast<const void*>(&append_rows<AppendConfig<kIn, kCache, kPacked>>);
}

#define FOVEAL_APPEND_KERNELS(in, cache)                                 \
    template const void* append_kernel<DType::in, DType::cache, true>(); \
    template const void* append_kernel<DType::in, DType::cache, false>();
FOVEAL_APPEND_KERNELS(f32, f32)
FOVEAL_APPEND_KERNELS(f32, bf16)
FOVEAL_APPEND_KERNELS(f32, f16)
FOVEAL_APPEND_KERNELS(f32, e4m3)
FOVEAL_APPEND_KERNELS(bf16, f32)
FOVEAL_APPEND_KERNELS(bf16, bf16)
FOVEAL_APPEND_KERNELS(bf16, f16)
FOVEAL_APPEND_KERNELS(bf16, e4m3)
FOVEAL_APPEND_KERNELS(f16, f32)
FOVEAL_APPEND_KERNELS(f16, bf16)
FOVEAL_APPEND_KERNELS(f16, f16)
FOVEAL_APPEND_KERNELS(f16, e4m3)
#undef FOVEAL_APPEND_KERNELS

}  // namespace foveal::sm90
