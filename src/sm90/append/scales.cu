// Scales of appended rows that are worked out (contract 1.12): the largest finite magnitude, after turning, over the
// largest number of e4m3.
//
// A warp takes a row of one head of k or v. Scales of rows are written where the append kernel reads them; of heads,
// the largest of all rows is found first, in place of the scale, by atomics whose order decides nothing.
#include <cfloat>

#include "sm90/append/items.cuh"
#include "sm90/append/params.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {
namespace {

constexpr float kLargestE4m3 = 448;

__device__ float scale_of(float largest) {
    const float scale = __fdiv_rn(largest, kLargestE4m3);
    return scale > 0 ? scale : 1;
}

// NaN and infinities aside.
template <int32_t kSize>
__device__ float larger(float largest, const float (&x)[kSize]) {
#pragma unroll
    for (int32_t n = 0; n < kSize; ++n)
        if (fabsf(x[n]) <= FLT_MAX) largest = fmaxf(largest, fabsf(x[n]));
    return largest;
}

// Of a row of one head; all lanes of the warp have it.
template <class Config>
__device__ float largest_of_row(const AppendParams& params, const AppendStream& stream, const void* from,
                                int64_t position) {
    float largest = 0;
    for (int32_t i = static_cast<int32_t>(threadIdx.x) % kWarpThreads; i < stream.items; i += kWarpThreads) {
        Turned<Config> turned;
        load_item<Config>(params, stream, {i, from}, position, turned);
        largest = larger(largest, turned.x);
        if (turned.is_pair) largest = larger(largest, turned.y);
    }
#pragma unroll
    for (int32_t lanes = 1; lanes < kWarpThreads; lanes *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    return largest;
}

template <class Config>
__global__ void __launch_bounds__(kAppendThreads) measure_rows(const __grid_constant__ AppendParams params) {
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    const int32_t heads_k = params.streams[0].heads, heads = heads_k + params.streams[1].heads;
    const int64_t warp = (int64_t{blockIdx.x} * kAppendThreads + threadIdx.x) / kWarpThreads, i = warp / heads;
    if (i >= params.all_rows) return;
    const auto n = static_cast<int32_t>(warp % heads);
    const AppendStream& stream = params.streams[n < heads_k ? 0 : 1];
    const int32_t head = n < heads_k ? n : n - heads_k;
    const int64_t outer = i / params.places.rows, row = i % params.places.rows;
    const AppendPlace place = params.places.of(outer, row);
    if (stream.scale_out == nullptr || place.page < 0) return;
    const auto* from = static_cast<const typename Format<Config::kIn>::Element*>(stream.from) +
                       outer * stream.from_batch_stride + row * stream.from_row_stride + head * stream.from_head_stride;
    const float largest = largest_of_row<Config>(params, stream, from, place.position);
    if (threadIdx.x % kWarpThreads != 0) return;
    float* to = stream.scale_out + place.page * stream.scale_page_stride + place.row * stream.scale_row_stride +
                head * stream.scale_head_stride;
    if (stream.scales_rows)
        *to = scale_of(largest);
    else
        atomicMax(reinterpret_cast<int32_t*>(to), __float_as_int(largest));  // none is negative: ordered like numbers
}

template <bool kBegins>
__global__ void __launch_bounds__(kAppendThreads) set_head_scales(const __grid_constant__ HeadScales scales) {
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
    for (int32_t n = 0; n < 2; ++n) {
        if (scales.scale[n] == nullptr) continue;
        for (auto head = static_cast<int32_t>(threadIdx.x); head < scales.heads[n]; head += kAppendThreads) {
            float* at = scales.scale[n] + head * scales.stride[n];
            *at = kBegins ? 0.0f : scale_of(*at);
        }
    }
}

}  // namespace

template <DType kIn, bool kPacked>
const void* measure_kernel() {
    return reinterpret_cast<const void*>(&measure_rows<AppendConfig<kIn, DType::e4m3, kPacked>>);
}
template const void* measure_kernel<DType::f32, true>();
template const void* measure_kernel<DType::f32, false>();
template const void* measure_kernel<DType::bf16, true>();
template const void* measure_kernel<DType::bf16, false>();
template const void* measure_kernel<DType::f16, true>();
template const void* measure_kernel<DType::f16, false>();

const void* begin_scales_kernel() { return reinterpret_cast<const void*>(&set_head_scales<true>); }
const void* end_scales_kernel() { return reinterpret_cast<const void*>(&set_head_scales<false>); }

}  // namespace foveal::sm90
