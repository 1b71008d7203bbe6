// Launches the backward's three kernels: what the plan has prepared, and the pointers.
#include <cuda.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <numbers>
#include <utility>

#include "cuda/device.hpp"
#include "cuda/kernel_table.hpp"
#include "cuda/tensor_map.hpp"
#include "sm90/backward/kernels.hpp"
#include "sm90/backward/params.hpp"
#include "sm90/backward/plan.hpp"
#include "sm90/backward/score_sums.hpp"
#include "sm90/device.hpp"
#include "sm90/scores/dropout.hpp"

namespace foveal::sm90 {
namespace {

// ---- which kernels --------------------------------------------------------------------------------------------------

constexpr std::array kTypes = {DType::bf16, DType::f16};
// kMain: one of each variant. Of wide heads kKeys and kQueries in place of it, of the widest a kernel for each
// gradient.
enum Pass : size_t {
    kPrepare,
    kFinish,
    kKeys,
    kQueries,
    kDroppingKeys,
    kDroppingQueries,
    kSums,
    kDroppingSums,
    kAddSums,
    kMain,
    kWidest = kMain + kBackwardVariants,
    kPasses = kWidest + kBackwardVariants * kWidestGradients
};
constexpr size_t kKernels = kTypes.size() * kBackwardTileCount * kPasses;

constexpr size_t kernel_index_of(size_t type, int32_t tile_index, size_t pass) {
    return (type * kBackwardTileCount + static_cast<size_t>(tile_index)) * kPasses + pass;
}

// Whose first kernel a tile has: that of the same d_v, for of the heads it reads O and dO alone.
constexpr int32_t prepare_tile_of(int32_t tile_index) {
    int32_t of = 0;
    while (kBackwardTiles[of].head_dim != kBackwardTiles[tile_index].head_dim_v) ++of;
    return of;
}

// Where a .cu is missing, the library does not link.
template <size_t kIndex>
constexpr cuda::Kernel kernel() {
    constexpr auto kTile = static_cast<int32_t>(kIndex / kPasses % kBackwardTileCount);
    constexpr DType kType = kTypes[kIndex / kPasses / kBackwardTileCount];
    constexpr size_t kPass = kIndex % kPasses;
    if constexpr (kPass == kPrepare) return {&prepare_kernel<BackwardInstance<kType, prepare_tile_of(kTile)>>};
    if constexpr (kPass == kFinish) return {&finish_kernel<BackwardInstance<kType, kTile>>};
    constexpr bool kIsWide = kBackwardTiles[kTile].is_wide, kIsWidest = kBackwardTiles[kTile].is_widest();
    if constexpr (kPass >= kWidest && kIsWidest) {
        constexpr auto kVariant = static_cast<BackwardVariant>((kPass - kWidest) / kWidestGradients);
        if constexpr (kVariant != BackwardVariant::dropout)  // here it is always with all options
            return {&widest_kernel<BackwardInstance<kType, kTile, kVariant>,
                                   static_cast<WidestGradient>((kPass - kWidest) % kWidestGradients)>,
                    kWidestSharedBytes};
    }
    if constexpr (kPass == kKeys && kIsWide && !kIsWidest)
        return {&wide_keys_kernel<BackwardInstance<kType, kTile>>, wide_shared_bytes(kBackwardTiles[kTile])};
    if constexpr (kPass == kQueries && kIsWide && !kIsWidest)
        return {&wide_queries_kernel<BackwardInstance<kType, kTile>>, wide_shared_bytes(kBackwardTiles[kTile])};
    if constexpr (kPass == kDroppingKeys && kIsWide && !kIsWidest)
        return {&wide_keys_kernel<BackwardInstance<kType, kTile, BackwardVariant::dropout>>,
                wide_shared_bytes(kBackwardTiles[kTile])};
    if constexpr (kPass == kDroppingQueries && kIsWide && !kIsWidest)
        return {&wide_queries_kernel<BackwardInstance<kType, kTile, BackwardVariant::dropout>>,
                wide_shared_bytes(kBackwardTiles[kTile])};
    if constexpr (kPass == kSums) return {&score_sums_kernel<kType, false>, kScoreSumsSharedBytes};
    if constexpr (kPass == kDroppingSums) return {&score_sums_kernel<kType, true>, kScoreSumsSharedBytes};
    if constexpr (kPass == kAddSums) return {&add_score_sums_kernel<kType>};
    if constexpr (kPass >= kMain && kPass < kWidest && !kIsWide) {
        constexpr auto kVariant = static_cast<BackwardVariant>(kPass - kMain);
        if constexpr (kVariant != BackwardVariant::dropout)  // likewise
            return {&backward_kernel<BackwardInstance<kType, kTile, kVariant>>, shared_bytes(kBackwardTiles[kTile])};
    }
    return {};
}

template <size_t... kIndices>
constexpr std::array<cuda::Kernel, kKernels> kernels(std::index_sequence<kIndices...>) {
    return {kernel<kIndices>()...};
}

constinit cuda::KernelTable<kKernels> kernel_table(kernels(std::make_index_sequence<kKernels>()));

// ---- what they get --------------------------------------------------------------------------------------------------

BackwardWorkspace workspace_of(const WorkspaceLayout& layout, void* workspace) {
    auto* const begin = static_cast<char*>(workspace);
    auto* const counts = reinterpret_cast<int32_t*>(begin + layout.counts);
    return {reinterpret_cast<float*>(begin + layout.dq_sums),
            reinterpret_cast<float*>(begin + layout.neg_lse),
            reinterpret_cast<float*>(begin + layout.neg_delta),
            reinterpret_cast<float*>(begin + layout.sink_parts),
            reinterpret_cast<int32_t*>(begin + layout.arrivals),
            reinterpret_cast<BackwardTask*>(begin + layout.tasks),
            counts,
            counts + 1};
}

BackwardIn in(const void* data, const Strides& s) { return {data, s.batch, s.row, s.head}; }
BackwardOut out(void* data, const Strides& s) { return {data, s.batch, s.row, s.head}; }

ScoreMatrix matrix(const void* data, const ScoreStrides& s) {
    return {data, s.batch, s.row, s.head, static_cast<int32_t>(s.key), false};
}

BackwardOptions options_of(const ForwardProblem& p, const ForwardPointers& pointers) {
    BackwardOptions options{};
    options.scale = p.scale;
    options.softcap = p.softcap;
    // Its products with other finite numbers are none that would be NaN.
    constexpr double kLargestArgument = 1e38;
    if (p.softcap > 0)
        options.cap_argument = static_cast<float>(
            std::clamp(static_cast<double>(p.scale) / p.softcap, -kLargestArgument, kLargestArgument));
    options.alibi_slopes = pointers.alibi_slopes;
    options.alibi_batch_stride = p.alibi.batch;
    options.alibi_head_stride = p.alibi.head;
    options.bias = matrix(pointers.bias, p.bias);
    options.bias_is_f32 = p.bias_dtype == DType::f32;
    options.mask = matrix(pointers.mask, p.mask);
    return options;
}

BackwardParams params_of(const BackwardProblem& problem, const PreparedBackward& prepared,
                         const BackwardPointers& pointers) {
    const ForwardProblem& p = problem.forward;
    BackwardParams params{};
    params.sequences = {p.lengths_q(pointers.forward), p.lengths_k(pointers.forward), p.window(),
                        static_cast<int32_t>(p.batch), prepared.slots};
    params.workspace = workspace_of(prepared.workspace, pointers.workspace);
    params.list_ctas = prepared.tile().is_wide ? 0 : kListCtas;
    params.heads_q = static_cast<int32_t>(p.heads_q);
    params.heads_k = static_cast<int32_t>(p.heads_k);
    params.heads_per_kv = static_cast<int32_t>(p.heads_per_kv());
    params.mapped_rows_q = static_cast<int32_t>(p.rows_q);
    params.mapped_rows_k = static_cast<int32_t>(p.rows_k);
    params.head_dim = static_cast<int32_t>(p.head_dim);
    params.head_dim_v = static_cast<int32_t>(p.head_dim_v);
    params.scale = p.scale;
    params.scale_log2 = static_cast<float>(static_cast<double>(p.scale) * std::numbers::log2e);
    params.inverse_scale = has_options(prepared.variant) ? 1 : 1 / p.scale;
    params.out = in(pointers.forward.out, p.out);
    params.dout = in(pointers.dout, problem.dout);
    params.lse = pointers.forward.lse;
    params.dlse = pointers.dlse;
    params.lse_batch_stride = p.lse.batch;
    params.lse_head_stride = p.lse.head;
    params.dlse_batch_stride = problem.dlse.batch;
    params.dlse_head_stride = problem.dlse.head;
    params.dq = out(pointers.dq, problem.dq);
    params.dk = out(pointers.dk, problem.dk);
    params.dv = out(pointers.dv, problem.dv);
    params.sinks = pointers.forward.sinks;
    params.sinks_head_stride = p.sinks.head;
    params.dsinks = pointers.dsinks;
    params.dsinks_head_stride = problem.dsinks.head;
    params.options = options_of(p, pointers.forward);
    return params;
}

ScoreSumsParams sums_params_of(const BackwardProblem& problem, const PreparedBackward& prepared,
                               const BackwardPointers& pointers, const BackwardParams& backward) {
    const ForwardProblem& p = problem.forward;
    auto* const workspace = static_cast<char*>(pointers.workspace);
    ScoreSumsParams params{};
    params.backward = backward;
    params.rows_q = static_cast<int32_t>(p.rows_q);
    params.rows_k = static_cast<int32_t>(p.rows_k);
    params.sums = prepared.bias_sums;
    params.dbias = {pointers.dbias,     problem.dbias.batch, problem.dbias.row,
                    problem.dbias.head, problem.dbias.key,   problem.dbias_dtype == DType::f32};
    if (prepared.bias_sums.parts > 1 && pointers.dbias != nullptr)
        params.bias_parts = reinterpret_cast<float*>(workspace + prepared.workspace.bias_parts);
    params.dalibi = pointers.dalibi_slopes;
    params.dalibi_batch_stride = problem.dalibi.batch;
    params.dalibi_head_stride = problem.dalibi.head;
    params.slope_parts = reinterpret_cast<float*>(workspace + prepared.workspace.slope_parts);
    params.dropout = Dropout::of(p, pointers.forward);
    return params;
}

struct Maps {
    CUtensorMap q, k, v, dout;
};

// key_rows: of a tile.
Maps maps_of(const BackwardProblem& problem, const BackwardPointers& pointers, int32_t key_rows) {
    const ForwardProblem& p = problem.forward;
    const int64_t batch = p.varlen ? 1 : p.batch;
    const cuda::MapBox queries{kPanelColumns, kBackwardQueries}, keys{kPanelColumns, key_rows};
    const auto map = [&](const cuda::MappedTensor& tensor, cuda::MapBox box) {
        return cuda::tensor_map(p.dtype, tensor, box);
    };
    cuda::MappedTensor q{"q", pointers.forward.q, batch, p.rows_q, p.heads_q, p.head_dim, p.q};
    cuda::MappedTensor k{"k", pointers.forward.k, batch, p.rows_k, p.heads_k, p.head_dim, p.k};
    cuda::MappedTensor v{"v", pointers.forward.v, batch, p.rows_k, p.heads_k, p.head_dim_v, p.v};
    cuda::MappedTensor dout{"dout", pointers.dout, batch, p.rows_q, p.heads_q, p.head_dim_v, problem.dout};
    // A tensor map has no empty dimension: what has no rows maps others, of which nothing is read.
    if (p.rows_k == 0) k = v = q;
    if (p.rows_q == 0) q = dout = k;
    return {map(q, queries), map(k, keys), map(v, keys), map(dout, queries)};
}

}  // namespace

void launch_backward(const BackwardProblem& problem, const PreparedBackward& prepared, int32_t device,
                     const BackwardPointers& pointers, void* stream) {
    const cuda::CurrentDevice current(device);
    const size_t type = problem.forward.dtype == kTypes[0] ? 0 : 1;
    BackwardParams params = params_of(problem, prepared, pointers);
    Maps maps{};
    void* beside[] = {&params};
    Dropout dropout = Dropout::of(problem.forward, pointers.forward);
    void* arguments[] = {&maps.q, &maps.k, &maps.v, &maps.dout, &params, &dropout};
    const auto launch = [&](size_t pass, cuda::LaunchShape shape, void** of_kernel, const char* name) {
        if (shape.grid > 0)
            cuda::launch(kernel_table.function(device, kernel_index_of(type, prepared.tile_index, pass)), shape, stream,
                         of_kernel, name);
    };
    if (prepared.has_products()) maps = maps_of(problem, pointers, prepared.tile().is_wide ? kWideKeys : kBackwardKeys);
    launch(kPrepare, {prepared.prepare_grid, kPrepareThreads, 0, true}, beside, "sm90 backward's first kernel");
    launch(kMain + static_cast<size_t>(prepared.variant),
           {prepared.grid, kBackwardThreads, shared_bytes(prepared.tile()), true}, arguments, "sm90 backward kernel");
    const bool drops = drops_weights(prepared.variant);
    launch(drops ? kDroppingKeys : kKeys,
           {prepared.keys_grid, kBackwardThreads, wide_shared_bytes(prepared.tile()), true}, arguments,
           "sm90 backward kernel of dk and dv");
    for (size_t gradient = 0; gradient < kWidestGradients; ++gradient)
        launch(kWidest + static_cast<size_t>(prepared.variant) * kWidestGradients + gradient,
               {prepared.widest_grids[gradient], kBackwardThreads, kWidestSharedBytes, true}, arguments,
               "sm90 backward kernel of one gradient");
    launch(drops ? kDroppingQueries : kQueries,
           {prepared.queries_grid, kBackwardThreads, wide_shared_bytes(prepared.tile()), true}, arguments,
           "sm90 backward kernel of dq");
    launch(kFinish, {prepared.finish_grid, kFinishThreads, 0, true}, beside, "sm90 backward's last kernel");
    if (prepared.bias_grid + prepared.slopes_grid + prepared.add_grid == 0) return;

    const ForwardProblem& p = problem.forward;
    ScoreSumsParams sums = sums_params_of(problem, prepared, pointers, params);
    void* of_sums[] = {&maps.q, &maps.k, &maps.v, &maps.dout, &sums};
    if (p.batch > 0 && p.rows_q > 0 && p.rows_k > 0)
        maps = maps_of(problem, pointers, kSumKeys);  // else there is no step
    // A gradient without elements is null; its strides do not tell.
    const int32_t bias_grid = pointers.dbias != nullptr ? prepared.bias_grid : 0;
    const size_t pass = drops ? kDroppingSums : kSums;
    launch(pass, {bias_grid, kSumThreads, kScoreSumsSharedBytes, true}, of_sums, "sm90 backward kernel of dbias");
    sums.of_slopes = true;
    launch(pass, {prepared.slopes_grid, kSumThreads, kScoreSumsSharedBytes, true}, of_sums,
           "sm90 backward kernel of dalibi_slopes");
    void* added[] = {&sums};
    launch(kAddSums, {prepared.add_grid, kFinishThreads, 0, true}, added, "sm90 backward's kernel of sums");
}

}  // namespace foveal::sm90
