// Launches the decode kernel: what the plan has prepared, and the pointers.
#include "sm90/decode/launch.hpp"

#include <cuda.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/tensor_map.hpp"
#include "sm90/decode/kernels.hpp"
#include "sm90/decode/plan.hpp"
#include "sm90/device.hpp"

namespace foveal::sm90 {
namespace {

// ---- which kernel ---------------------------------------------------------------------------------------------------

constexpr std::array kTypes = {DType::bf16, DType::f16};
constexpr size_t kVariants = static_cast<size_t>(DecodeVariant::options) + 1;
constexpr size_t kKeyTypes = 2;  // q's, and e4m3
constexpr size_t kKernels = kTypes.size() * kDecodeTileCount * kVariants * kKeyTypes;

constexpr size_t kernel_index_of(size_t type, DecodeChoice choice) {
    return ((type * kDecodeTileCount + static_cast<size_t>(choice.tile_index)) * kVariants +
            static_cast<size_t>(choice.variant)) *
               kKeyTypes +
           (choice.dequantises ? 1 : 0);
}

// One kernel for each type, tile and variant that the tile is used for (tiles.hpp), and type of keys: where its .cu is
// missing, the library does not link.
template <size_t kIndex>
constexpr cuda::Kernel kernel() {
    constexpr bool kDequantises = kIndex % kKeyTypes == 1;
    constexpr auto kVariant = static_cast<DecodeVariant>(kIndex / kKeyTypes % kVariants);
    constexpr auto kTileIndex = static_cast<int32_t>(kIndex / kKeyTypes / kVariants % kDecodeTileCount);
    constexpr size_t kTypeIndex = kIndex / kKeyTypes / kVariants / kDecodeTileCount;
    constexpr DType kType = kTypes[kTypeIndex];
    constexpr DecodeChoice kChoice{.tile_index = kTileIndex, .variant = kVariant, .dequantises = kDequantises};
    static_assert(kernel_index_of(kTypeIndex, kChoice) == kIndex);
    using Instance = std::conditional_t<kDequantises, DecodeE4m3Instance<kType, kTileIndex, kVariant>,
                                        DecodeInstance<kType, kTileIndex, kVariant>>;
    constexpr const DecodeTileEntry& kEntry = kDecodeTiles[kTileIndex];
    if constexpr (kDequantises ? dequantises_with(kEntry, kVariant) : kEntry.serves(kVariant))
        return {&decode_kernel<Instance>, shared_bytes(kChoice.tile())};
    return {};
}

template <size_t... kIndices>
constexpr std::array<cuda::Kernel, kKernels> kernels(std::index_sequence<kIndices...>) {
    return {kernel<kIndices>()...};
}

constinit cuda::KernelTable<kKernels> kernel_table(kernels(std::make_index_sequence<kKernels>()));

// ---- what it gets ---------------------------------------------------------------------------------------------------

DecodeParams with_pointers(const PreparedDecode& kernel, const ForwardProblem& p, const ForwardPointers& pointers) {
    DecodeParams params = kernel.params;
    params.lengths_q = p.lengths_q(pointers);
    params.lengths_k = p.lengths_k(pointers);
    params.query_offset = pointers.query_offset;
    params.table = p.page_table(pointers);
    params.k.data = pointers.k;
    params.v.data = pointers.v;
    params.k_descale.data = pointers.k_descale;
    params.v_descale.data = pointers.v_descale;
    params.q = pointers.q;
    params.out = pointers.out;
    params.lse = pointers.lse;
    params.sinks = pointers.sinks;
    params.scores.alibi_slopes = pointers.alibi_slopes;
    params.tree = pointers.tree_mask;
    params.splits = pointers.workspace != nullptr;
    auto* bytes = static_cast<char*>(pointers.workspace);
    params.arrived = reinterpret_cast<int32_t*>(bytes + kernel.counts);
    params.nodes = reinterpret_cast<float*>(bytes + kernel.nodes);
    return params;
}

// The map of k or v: pages, sequences, or all rows as one sequence.
cuda::MappedTensor mapped(const char* name, const void* data, int64_t head_dim, const Strides& strides,
                          const ForwardProblem& p, const void* something) {
    cuda::MappedTensor t{name, data, p.batch, p.rows_k, p.heads_k, head_dim, strides};
    if (p.keys == KeyForm::varlen) t.batch = 1;
    if (p.keys == KeyForm::paged) {
        t.batch = p.pages;
        t.rows = p.page_size;
    }
    // A tensor map has no empty dimension: without rows, or pages, it maps a row of q, of which nothing is read.
    if (t.batch == 0 || t.rows == 0) return {"q", something, 1, 1, 1, p.head_dim, {}};
    return t;
}

}  // namespace

void enqueue_decode(CUfunction function, const ForwardProblem& p, const PreparedDecode& kernel,
                    const ForwardPointers& pointers, void* stream) {
    CUtensorMap k{}, v{};
    if (kernel.schedule.box_rows > 0) {
        const cuda::MapBox box{kernel.tile().panel_channels(), kernel.schedule.box_rows};
        const DType type = kernel.tile().dequantises() ? DType::e4m3 : p.dtype;
        k = cuda::tensor_map(type, mapped("k", pointers.k, p.head_dim, p.k, p, pointers.q), box);
        v = cuda::tensor_map(type, mapped("v", pointers.v, p.head_dim_v, p.v, p, pointers.q), box);
    }
    DecodeParams params = with_pointers(kernel, p, pointers);
    void* arguments[] = {&k, &v, &params};
    cuda::launch(function, {kernel.grid(params.splits), kDecodeThreads, shared_bytes(kernel.tile()), true}, stream,
                 arguments, "sm90 decode kernel");
}

void launch_decode(const ForwardProblem& p, const PreparedDecode& kernel, int32_t device,
                   const ForwardPointers& pointers, void* stream) {
    const cuda::CurrentDevice current(device);
    const size_t type = p.dtype == kTypes[0] ? 0 : 1;
    const CUfunction function = kernel_table.function(device, kernel_index_of(type, kernel.schedule.choice));
    enqueue_decode(function, p, kernel, pointers, stream);
}

}  // namespace foveal::sm90
