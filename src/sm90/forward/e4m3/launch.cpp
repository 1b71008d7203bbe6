// Launches the forward kernel over e4m3: what the plan has prepared, and the pointers.
#include <cuda.h>

#include <array>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/tensor_map.hpp"
#include "sm90/device.hpp"
#include "sm90/forward/e4m3/kernels.hpp"
#include "sm90/forward/e4m3/plan.hpp"

namespace foveal::sm90 {
namespace {

template <DType kOut, int32_t kHeadDim, bool kLse>
constexpr cuda::Kernel kernel() {
    return {&forward_e4m3_kernel<E4m3Instance<kOut, kHeadDim, kLse>>, shared_bytes({kOut, kHeadDim, kLse})};
}

constexpr size_t kernel_index_of(const E4m3Config& config) {
    return (config.out == DType::bf16 ? 0 : 4) + (config.head_dim == 64 ? 0 : 2) + (config.has_lse ? 1 : 0);
}

constinit cuda::KernelTable<8> kernel_table({kernel<DType::bf16, 64, false>(), kernel<DType::bf16, 64, true>(),
                                             kernel<DType::bf16, 128, false>(), kernel<DType::bf16, 128, true>(),
                                             kernel<DType::f16, 64, false>(), kernel<DType::f16, 64, true>(),
                                             kernel<DType::f16, 128, false>(), kernel<DType::f16, 128, true>()});

E4m3Params with_pointers(E4m3Params params, const ForwardPointers& pointers) {
    params.forward.cu_seqlens_q = pointers.cu_seqlens_q;
    params.forward.cu_seqlens_k = pointers.cu_seqlens_k;
    params.forward.seqused_q = pointers.seqused_q;
    params.forward.seqused_k = pointers.seqused_k;
    params.forward.out = pointers.out;
    params.forward.lse = pointers.lse;
    params.forward.sinks = pointers.sinks;
    params.q.data = pointers.q_descale;
    params.k.data = pointers.k_descale;
    params.v.data = pointers.v_descale;
    return params;
}

struct Maps {
    CUtensorMap q, packed_q, k, v, out;
};

Maps maps_of(const ForwardProblem& p, const PreparedE4m3& kernel, const ForwardPointers& pointers) {
    const int64_t batch = p.varlen ? 1 : p.batch;
    const cuda::MappedTensor q{"q", pointers.q, batch, p.rows_q, p.heads_q, p.head_dim, p.q};
    cuda::MappedTensor k{"k", pointers.k, batch, p.rows_k, p.heads_k, p.head_dim, p.k};
    cuda::MappedTensor v{"v", pointers.v, batch, p.rows_k, p.heads_k, p.head_dim_v, p.v};
    const cuda::MappedTensor out{"out", pointers.out, batch, p.rows_q, p.heads_q, p.head_dim_v, p.out};
    // A tensor map has no empty dimension: without keys K and V map a row of q, which the kernel masks and zeroes.
    if (p.rows_k == 0) k = v = {"q", pointers.q, batch, 1, p.heads_k, p.head_dim, p.q};
    Maps maps{};
    maps.q = cuda::tensor_map(p.dtype, q, {kE4m3Channels, kWarpgroupRows});
    maps.packed_q = kernel.schedule.heads_log2 > 0 ? cuda::tensor_map(p.dtype, q, {kE4m3Channels, kWarpRows}) : maps.q;
    maps.k = cuda::tensor_map(p.dtype, k, {kE4m3Channels, kE4m3Keys});
    maps.v = cuda::tensor_map(p.dtype, v, {kE4m3Channels, kE4m3Keys});
    maps.out = cuda::tensor_map(p.out_dtype, out, {kPanelColumns, kWarpRows});
    return maps;
}

}  // namespace

void launch_e4m3_forward(const ForwardProblem& p, const PreparedE4m3& kernel, int32_t device,
                         const ForwardPointers& pointers, void* stream) {
    const cuda::CurrentDevice current(device);
    const CUfunction function = kernel_table.function(device, kernel_index_of(kernel.config));
    Maps maps = maps_of(p, kernel, pointers);
    E4m3Params params = with_pointers(kernel.params, pointers);
    void* arguments[] = {&maps.q, &maps.packed_q, &maps.k, &maps.v, &maps.out, &params};
    cuda::launch(function, {kernel.schedule.grid, kernel.config.walk().threads(), shared_bytes(kernel.config), true},
                 stream, arguments, "sm90 forward kernel over e4m3");
}

}  // namespace foveal::sm90
