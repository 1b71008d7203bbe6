// Launches merges (merge.cu).
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "sm90/device.hpp"
#include "sm90/merge/params.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kCtasPerSm = 8;

struct MergeTypes {
    DType in, out;
    bool operator==(const MergeTypes&) const = default;
};

// validate() lets no other types through. Of each there are two kernels, the packed one second.
constexpr std::array kTypes = {MergeTypes{DType::f32, DType::f32},  MergeTypes{DType::f32, DType::bf16},
                               MergeTypes{DType::f32, DType::f16},  MergeTypes{DType::bf16, DType::bf16},
                               MergeTypes{DType::bf16, DType::f32}, MergeTypes{DType::f16, DType::f16},
                               MergeTypes{DType::f16, DType::f32}};

template <size_t... kI>
constexpr std::array<cuda::Kernel, sizeof...(kI)> kernels(std::index_sequence<kI...>) {
    return {cuda::Kernel{&merge_kernel<kTypes[kI / 2].in, kTypes[kI / 2].out, kI % 2 == 1>}...};
}

constinit cuda::KernelTable<2 * kTypes.size()> kernel_table(kernels(std::make_index_sequence<2 * kTypes.size()>()));

size_t kernel_index_of(const Merge& merge, bool packed) {
    const auto* found = std::find(kTypes.begin(), kTypes.end(), MergeTypes{merge.dtype, merge.out_dtype});
    return static_cast<size_t>(found - kTypes.begin()) * 2 + (packed ? 1 : 0);
}

bool rows_can_be_packed(const MergePart& part, DType dtype) {
    const auto fits = [&](int64_t stride) { return stride * bytes_of(dtype) % kMergePackBytes == 0; };
    return reinterpret_cast<uintptr_t>(part.out) % kMergePackBytes == 0 && fits(part.out_stride.batch) &&
           fits(part.out_stride.row) && fits(part.out_stride.head);
}

bool can_be_packed(const Merge& merge) {
    const auto end = merge.part.begin() + merge.parts;
    return merge.head_dim * bytes_of(merge.dtype) % kMergePackBytes == 0 &&
           std::all_of(merge.part.begin(), end,
                       [&](const MergePart& part) { return rows_can_be_packed(part, merge.dtype); }) &&
           rows_can_be_packed(merge.merged, merge.out_dtype);
}

MergeRows rows_of(const MergePart& part) {
    return {part.out,
            part.lse,
            part.out_stride.batch,
            part.out_stride.row,
            part.out_stride.head,
            part.lse_stride.batch,
            part.lse_stride.head};
}

// As many as a row has packs, rounded up to a power of two, but not more than the CTA has.
int32_t row_threads_log2_of(const Merge& merge, bool packed) {
    const int64_t packs = packed ? merge.head_dim * bytes_of(merge.dtype) / kMergePackBytes : merge.head_dim;
    const int64_t threads = std::clamp<int64_t>(packs, 1, kMergeThreads);
    return std::bit_width(static_cast<uint32_t>(threads - 1));
}

MergeParams params_of(const Merge& merge, bool packed) {
    MergeParams params{};
    params.all_rows = merge.all_rows();
    params.rows = merge.rows;
    params.heads = merge.heads;
    params.head_dim = merge.head_dim;
    params.parts = merge.parts;
    params.row_threads_log2 = row_threads_log2_of(merge, packed);
    params.merged = rows_of(merge.merged);
    for (int32_t n = 0; n < merge.parts; ++n) params.part[n] = rows_of(merge.part[static_cast<size_t>(n)]);
    return params;
}

}  // namespace

void launch_merge(const Merge& merge, void* stream) {
    const int32_t device = device_of(stream);
    const cuda::DeviceTraits traits = traits_of(device);
    if (merge.all_rows() == 0) return;
    const cuda::CurrentDevice current(device);
    const bool packed = can_be_packed(merge);
    MergeParams params = params_of(merge, packed);
    void* arguments[] = {&params};
    const int64_t tiles = (params.all_rows + kMergeTileRows - 1) / kMergeTileRows;
    const auto grid = static_cast<int32_t>(std::min<int64_t>(tiles, int64_t{traits.sms} * kCtasPerSm));
    cuda::launch(kernel_table.function(device, kernel_index_of(merge, packed)), {grid, kMergeThreads}, stream,
                 arguments, "sm90 merge kernel");
}

}  // namespace foveal::sm90
