// Launches the forward kernel: what the plan has prepared, and the pointers.
#include "sm90/forward/launch.hpp"

#include <cuda.h>

#include <array>
#include <cstdint>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/tensor_map.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/dequantising_kernels.hpp"
#include "sm90/forward/kernels.hpp"
#include "sm90/forward/key_descales.hpp"
#include "sm90/forward/plan.hpp"
#include "sm90/scores/dropout.hpp"
#include "sm90/scores/matrix_vectors.hpp"

namespace foveal::sm90 {
namespace {

// ---- which kernel ---------------------------------------------------------------------------------------------------

constexpr std::array kTypes = {DType::bf16, DType::f16};
constexpr size_t kVariants = static_cast<size_t>(ForwardVariant::dropout) + 1;
constexpr size_t kForms = 3;  // keys as q, of any form, and of any form in e4m3
constexpr size_t kKernels = kTypes.size() * kTileCount * kVariants * kForms;

constexpr size_t kernel_index_of(size_t type, ForwardChoice choice) {
    const size_t tile = type * kTileCount + static_cast<size_t>(choice.tile_index);
    const size_t form = choice.dequantises ? 2 : choice.any_keys ? 1 : 0;
    return (tile * kVariants + static_cast<size_t>(choice.variant)) * kForms + form;
}

// One kernel for each type, tile and variant that the tile is used for (tiles.hpp): where its .cu is missing, the
// library does not link.
template <size_t kIndex>
constexpr cuda::Kernel kernel() {
    constexpr bool kAnyKeys = kIndex % kForms != 0, kDequantises = kIndex % kForms == 2;
    constexpr auto kVariant = static_cast<ForwardVariant>(kIndex / kForms % kVariants);
    constexpr auto kTileIndex = static_cast<int32_t>(kIndex / kForms / kVariants % kTileCount);
    constexpr size_t kTypeIndex = kIndex / kForms / kVariants / kTileCount;
    static_assert(kernel_index_of(kTypeIndex, {kTileIndex, kVariant, kAnyKeys, kDequantises}) == kIndex);
    using Instance = ForwardInstance<kTypes[kTypeIndex], kTileIndex, kVariant, kAnyKeys>;
    constexpr int32_t kSharedBytes = shared_bytes(kForwardTiles[kTileIndex].tile);
    if constexpr (kDequantises && dequantises_with(kForwardTiles[kTileIndex], kVariant))
        return {&dequantising_forward_kernel<Instance>, kSharedBytes};
    else if constexpr (!kDequantises && kForwardTiles[kTileIndex].serves(kVariant, kAnyKeys))
        return {&forward_kernel<Instance>, kSharedBytes};
    else
        return {};
}

template <size_t... kIndices>
constexpr std::array<cuda::Kernel, kKernels> kernels(std::index_sequence<kIndices...>) {
    return {kernel<kIndices>()...};
}

constinit cuda::KernelTable<kKernels> kernel_table(kernels(std::make_index_sequence<kKernels>()));

// ---- what it gets ---------------------------------------------------------------------------------------------------

void set_data(ScoreMatrix& matrix, const void* data, DType dtype) {
    const auto bytes = static_cast<size_t>(bytes_of(dtype));
    const size_t vector_bytes = static_cast<size_t>(vector_elements(bytes)) * bytes;
    matrix.data = data;
    matrix.in_vectors = matrix.in_vectors && reinterpret_cast<uintptr_t>(data) % vector_bytes == 0;
}

ForwardParams with_pointers(ForwardParams params, const ForwardProblem& p, const ForwardPointers& pointers) {
    params.cu_seqlens_q = pointers.cu_seqlens_q;
    params.cu_seqlens_k = pointers.cu_seqlens_k;
    params.seqused_q = pointers.seqused_q;
    params.seqused_k = pointers.seqused_k;
    params.out = pointers.out;
    params.lse = pointers.lse;
    params.sinks = pointers.sinks;
    params.scores.alibi_slopes = pointers.alibi_slopes;
    set_data(params.scores.bias, pointers.bias, p.bias_dtype);
    set_data(params.scores.mask, pointers.mask, DType::boolean);
    KeyPlaces& places = params.places;
    places.table = p.page_table(pointers);
    places.k.data = pointers.k;
    places.v.data = pointers.v;
    places.query_offset = pointers.query_offset;
    places.tree.data = pointers.tree_mask;
    return params;
}

KeyDescale descale_of(const Descale& d, const float* data) {
    return {data, d.of_rows, d.stride.batch, d.stride.row, d.stride.head};
}

struct Maps {
    CUtensorMap q, packed_q, k, v, out;
};

Maps maps_of(const ForwardProblem& p, const PreparedForward& kernel, const ForwardPointers& pointers) {
    const bool in_pages = p.keys == KeyForm::paged;
    const int64_t batch = p.varlen ? 1 : p.batch;
    const int64_t batch_k = in_pages                    ? p.pages
                            : p.keys == KeyForm::varlen ? 1
                                                        : p.batch,
                  rows_k = in_pages ? p.page_size : p.rows_k;
    const int32_t box_rows = kernel.params.places.box_rows;
    const cuda::MappedTensor q{"q", pointers.q, batch, p.rows_q, p.heads_q, p.head_dim, p.q};
    cuda::MappedTensor k{"k", pointers.k, batch_k, rows_k, p.heads_k, p.head_dim, p.k};
    cuda::MappedTensor v{"v", pointers.v, batch_k, rows_k, p.heads_k, p.head_dim_v, p.v};
    const cuda::MappedTensor out{"out", pointers.out, batch, p.rows_q, p.heads_q, p.head_dim_v, p.out};
    // A tensor map has no empty dimension: without keys K and V map a row of q, which the kernel masks and zeroes.
    // So where their rows are gathered.
    const bool is_mapped = p.rows_k > 0 && batch_k > 0 && box_rows > 0;
    if (!is_mapped) k = v = {"q", pointers.q, batch, 1, p.heads_k, p.head_dim, p.q};
    const cuda::MapBox block{kPanelColumns, is_mapped ? box_rows : kernel.tile().keys}, warp{kPanelColumns, kWarpRows};
    Maps maps{};
    maps.q = cuda::tensor_map(p.dtype, q, {kPanelColumns, kWarpgroupRows});
    maps.packed_q = kernel.schedule.heads_log2 > 0 ? cuda::tensor_map(p.dtype, q, warp) : maps.q;
    maps.k = cuda::tensor_map(p.dtype, k, block);
    maps.v = cuda::tensor_map(p.dtype, v, block);
    // An f32 out is written without the copy engine.
    maps.out = p.out_dtype == p.dtype ? cuda::tensor_map(p.dtype, out, warp) : maps.q;
    return maps;
}

}  // namespace

void enqueue_forward(CUfunction function, const ForwardProblem& p, const PreparedForward& kernel,
                     const ForwardPointers& pointers, void* stream) {
    Maps maps = maps_of(p, kernel, pointers);
    ForwardParams params = with_pointers(kernel.params, p, pointers);
    // The last is what kernels for e4m3 keys read, or those under dropout.
    KeyDescales descales{descale_of(p.k_descale, pointers.k_descale), descale_of(p.v_descale, pointers.v_descale)};
    Dropout dropout = Dropout::of(p, pointers);
    void* const last = kernel.schedule.choice.dequantises ? static_cast<void*>(&descales) : &dropout;
    void* arguments[] = {&maps.q, &maps.packed_q, &maps.k, &maps.v, &maps.out, &params, last};
    const ForwardTile& tile = kernel.tile();
    cuda::launch(function, {kernel.schedule.grid, tile.threads(), shared_bytes(tile), true}, stream, arguments,
                 "sm90 forward kernel");
}

void launch_forward(const ForwardProblem& p, const PreparedForward& kernel, int32_t device,
                    const ForwardPointers& pointers, void* stream) {
    const cuda::CurrentDevice current(device);
    const size_t type = p.dtype == kTypes[0] ? 0 : 1;
    const CUfunction function = kernel_table.function(device, kernel_index_of(type, kernel.schedule.choice));
    enqueue_forward(function, p, kernel, pointers, stream);
}

}  // namespace foveal::sm90
