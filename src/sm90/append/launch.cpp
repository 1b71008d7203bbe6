// Launches appends (append.cu).
#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "problem/append.hpp"
#include "sm90/append/params.hpp"
#include "sm90/device.hpp"

namespace foveal::sm90 {
namespace {

constexpr std::array kTypes = {DType::f32, DType::bf16, DType::f16};

// Of each pair of types there are two kernels, the packed one second.
template <size_t... kI>
constexpr std::array<cuda::Kernel, sizeof...(kI)> kernels(std::index_sequence<kI...>) {
    return {cuda::Kernel{&append_kernel<kTypes[kI / 6], kTypes[kI / 2 % 3], kI % 2 == 1>}...};
}

constexpr size_t kKernels = 2 * kTypes.size() * kTypes.size();
constinit cuda::KernelTable<kKernels> kernel_table(kernels(std::make_index_sequence<kKernels>()));

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
    stream.scale_stride = rows.scale_stride;
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

}  // namespace

void launch_append(const Append& append, void* stream) {
    if (cache_dtype(append) == DType::e4m3)
        throw Error(FOVEAL_UNSUPPORTED,
                    "k_cache.dtype (or v_cache's) is e4m3, which the cpu backend supports and sm90 does not yet; sm90 "
                    "appends to f32, bf16 and f16");
    const int32_t device = device_of(stream);
    traits_of(device);
    const bool packed = can_be_packed(append);
    AppendParams params = params_of(append, packed ? vector_elements(append.dtype) : 1);
    if (params.all_rows == 0 || params.row_items == 0) return;
    const cuda::CurrentDevice current(device);
    void* arguments[] = {&params};
    const auto grid = static_cast<int32_t>((params.all_rows + params.cta_rows - 1) / params.cta_rows);
    const size_t kernel =
        2 * (kTypes.size() * index_of(append.dtype) + index_of(cache_dtype(append))) + (packed ? 1 : 0);
    cuda::launch(kernel_table.function(device, kernel), {grid, kAppendThreads, 0, true}, stream, arguments,
                 "sm90 append kernel");
}

}  // namespace foveal::sm90
