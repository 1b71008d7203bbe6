// Launches appends (append.cu).
#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "problem/append.hpp"
#include "sm90/append/params.hpp"
#include "sm90/device.hpp"
#include "sm90/tile/warpgroup.hpp"

namespace foveal::sm90 {
namespace {

constexpr std::array kTypes = {DType::f32, DType::bf16, DType::f16, DType::e4m3};  // the last: of caches alone
constexpr size_t kNewTypes = 3;

// Of each pair of types there are two kernels, the packed one second.
template <size_t... kI>
constexpr std::array<cuda::Kernel, sizeof...(kI)> kernels(std::index_sequence<kI...>) {
    return {
        cuda::Kernel{&append_kernel<kTypes[kI / 2 / kTypes.size()], kTypes[kI / 2 % kTypes.size()], kI % 2 == 1>}...};
}

constexpr size_t kKernels = 2 * kNewTypes * kTypes.size();
constinit cuda::KernelTable<kKernels> kernel_table(kernels(std::make_index_sequence<kKernels>()));

// Those that work scales out: of each type of new rows two, the packed one second; then those of heads alone.
constexpr size_t kBeginScales = 2 * kNewTypes, kEndScales = kBeginScales + 1;
constinit cuda::KernelTable<kEndScales + 1> scale_kernels(
    {cuda::Kernel{&measure_kernel<DType::f32, false>}, cuda::Kernel{&measure_kernel<DType::f32, true>},
     cuda::Kernel{&measure_kernel<DType::bf16, false>}, cuda::Kernel{&measure_kernel<DType::bf16, true>},
     cuda::Kernel{&measure_kernel<DType::f16, false>}, cuda::Kernel{&measure_kernel<DType::f16, true>},
     cuda::Kernel{&begin_scales_kernel}, cuda::Kernel{&end_scales_kernel}});

size_t index_of(DType dtype) {
    return static_cast<size_t>(std::find(kTypes.begin(), kTypes.end(), dtype) - kTypes.begin());
}

// What the cache holds; without one, what is appended.
DType cache_dtype(const Append& append) {
    for (const AppendedRows& rows : append.rows)
        if (rows.present() && rows.in_cache) return rows.to_dtype;
    return append.dtype;
}

int64_t vector_elements(DType dtype) { return kAppendVectorBytes / bytes_of(dtype); }

// Can vectors of `elements` be read, or written, wherever they begin?
bool is_in_vectors(const void* data, const Strides& stride, DType dtype, int64_t elements) {
    const auto bytes = static_cast<uintptr_t>(elements * bytes_of(dtype));
    return reinterpret_cast<uintptr_t>(data) % bytes == 0 && (stride.batch | stride.row | stride.head) % elements == 0;
}

bool can_be_packed(const Append& append) {
    const int64_t elements = vector_elements(append.dtype);
    const Rotary& rotary = append.rotary;
    if (rotary.dim / 2 % elements != 0) return false;
    if (rotary.dtype != DType::f32 && !(is_in_vectors(rotary.cos, {0, rotary.cos_stride, 0}, rotary.dtype, elements) &&
                                        is_in_vectors(rotary.sin, {0, rotary.sin_stride, 0}, rotary.dtype, elements)))
        return false;
    return std::all_of(append.rows.begin(), append.rows.end(), [&](const AppendedRows& rows) {
        return !rows.present() ||
               (rows.head_dim % elements == 0 && is_in_vectors(rows.from, rows.from_stride, append.dtype, elements) &&
                is_in_vectors(rows.to, rows.to_stride, rows.to_dtype, elements));
    });
}

AppendStream stream_of(const Append& append, const AppendedRows& rows, int64_t elements) {
    AppendStream stream{};
    if (!rows.present()) return stream;
    stream.from = rows.from;
    stream.to = rows.to;
    stream.from_batch_stride = rows.from_stride.batch;
    stream.from_row_stride = rows.from_stride.row;
    stream.from_head_stride = rows.from_stride.head;
    stream.to_batch_stride = rows.to_stride.batch;
    stream.to_row_stride = rows.to_stride.row;
    stream.to_head_stride = rows.to_stride.head;
    stream.scale = rows.scale;
    stream.scale_head_stride = rows.scale_stride;
    if (rows.scale_out != nullptr) {
        stream.scale = stream.scale_out = rows.scale_out;
        stream.scales_rows = rows.scales_rows;
        stream.scale_head_stride = rows.scale_out_stride.head;
        stream.scale_page_stride = rows.scale_out_stride.batch;
        stream.scale_row_stride = rows.scale_out_stride.row;
    }
    stream.heads = static_cast<int32_t>(rows.heads);
    const int64_t turning = rows.turns ? append.rotary.dim : 0;
    stream.turning_items = static_cast<int32_t>(turning / 2 / elements);
    stream.items = static_cast<int32_t>(stream.turning_items + (rows.head_dim - turning) / elements);
    return stream;
}

AppendParams params_of(const Append& append, int64_t elements) {
    AppendParams params{};
    params.places = append.places;
    params.all_rows = append.all_rows();
    for (int32_t i = 0; i < kAppendStreams; ++i) {
        params.streams[i] = stream_of(append, append.rows[static_cast<size_t>(i)], elements);
        params.row_items += params.streams[i].heads * params.streams[i].items;
    }
    params.cta_rows = std::max(1, kAppendThreads / std::max(params.row_items, 1));
    params.cos = append.rotary.cos;
    params.sin = append.rotary.sin;
    params.cos_stride = append.rotary.cos_stride;
    params.sin_stride = append.rotary.sin_stride;
    params.pairs = static_cast<int32_t>(append.rotary.dim / 2);
    params.interleaved = append.rotary.interleaved;
    params.angles_are_f32 = append.rotary.dtype == DType::f32;
    return params;
}

HeadScales head_scales_of(const AppendParams& params) {
    HeadScales scales{};
    for (int32_t n = 0; n < 2; ++n) {
        const AppendStream& stream = params.streams[n];
        if (stream.scales_rows) continue;
        scales.scale[n] = stream.scale_out;
        scales.stride[n] = stream.scale_head_stride;
        scales.heads[n] = stream.heads;
    }
    return scales;
}

// Those of heads are 1 where there are no rows.
void work_out_scales(const Append& append, AppendParams& params, int32_t device, bool packed, void* stream) {
    if (params.streams[0].scale_out == nullptr && params.streams[1].scale_out == nullptr) return;
    HeadScales of_heads = head_scales_of(params);
    const bool has_head_scales = of_heads.scale[0] != nullptr || of_heads.scale[1] != nullptr;
    void* head_arguments[] = {&of_heads};
    const auto launch_for_heads = [&](size_t kernel) {
        if (has_head_scales)
            cuda::launch(scale_kernels.function(device, kernel), {1, kAppendThreads, 0, true}, stream, head_arguments,
                         "sm90 append: scales of heads");
    };
    launch_for_heads(kBeginScales);
    const int64_t warps = params.all_rows * (params.streams[0].heads + params.streams[1].heads);
    if (warps > 0) {
        constexpr int64_t kWarps = kAppendThreads / kWarpThreads;
        void* arguments[] = {&params};
        cuda::launch(scale_kernels.function(device, 2 * index_of(append.dtype) + (packed ? 1 : 0)),
                     {static_cast<int32_t>((warps + kWarps - 1) / kWarps), kAppendThreads, 0, true}, stream, arguments,
                     "sm90 append: scales");
    }
    launch_for_heads(kEndScales);
}

}  // namespace

void launch_append(const Append& append, void* stream) {
    const int32_t device = device_of(stream);
    traits_of(device);
    const bool packed = can_be_packed(append);
    AppendParams params = params_of(append, packed ? vector_elements(append.dtype) : 1);
    const cuda::CurrentDevice current(device);
    work_out_scales(append, params, device, packed, stream);
    if (params.all_rows == 0 || params.row_items == 0) return;
    void* arguments[] = {&params};
    const auto grid = static_cast<int32_t>((params.all_rows + params.cta_rows - 1) / params.cta_rows);
    const size_t kernel =
        2 * (kTypes.size() * index_of(append.dtype) + index_of(cache_dtype(append))) + (packed ? 1 : 0);
    cuda::launch(kernel_table.function(device, kernel), {grid, kAppendThreads, 0, true}, stream, arguments,
                 "sm90 append kernel");
}

}  // namespace foveal::sm90
