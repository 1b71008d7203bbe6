#include "sm90/forward/launch.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <iterator>
#include <mutex>
#include <numeric>
#include <string>

#include "cuda/device.hpp"
#include "sm90/forward/kernels.hpp"
#include "sm90/forward/order.hpp"
#include "sm90/forward/params.hpp"
#include "sm90/forward/tiles.hpp"
#include "sm90/scores/matrix_vectors.hpp"

namespace foveal::sm90 {
namespace {

constexpr int32_t kMaxDevices = 64;

// One row a Config; a problem that matches none was refused by check_supported().
struct ForwardKernel {
    DType dtype;
    ForwardChoice choice;
    const void* (*address)();
};

template <DType kType, int32_t kTileIndex, ForwardVariant kVariant>
constexpr ForwardKernel kernel() {
    return {kType, {kTileIndex, kVariant}, &forward_kernel<ForwardInstance<kType, kTileIndex, kVariant>>};
}

// clang-format off
constexpr ForwardKernel kForwardKernels[] = {
    kernel<DType::bf16, kTileD64, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD64, ForwardVariant::lse>(),
    kernel<DType::bf16, kTileD64, ForwardVariant::softcap>(),
    kernel<DType::bf16, kTileD64, ForwardVariant::softcap_lse>(),
    kernel<DType::bf16, kTileD64, ForwardVariant::bias>(),
    kernel<DType::bf16, kTileD64, ForwardVariant::bias_lse>(),
    kernel<DType::bf16, kTileD64Long, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD64Options, ForwardVariant::options>(),
    kernel<DType::bf16, kTileD64Options, ForwardVariant::options_lse>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::lse>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::softcap>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::softcap_lse>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::bias>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::bias_lse>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::options>(),
    kernel<DType::bf16, kTileD128, ForwardVariant::options_lse>(),
    kernel<DType::bf16, kTileD192, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD192, ForwardVariant::options_lse>(),
    kernel<DType::bf16, kTileD256, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD256, ForwardVariant::lse>(),
    kernel<DType::bf16, kTileD256, ForwardVariant::softcap_lse>(),
    kernel<DType::bf16, kTileD256, ForwardVariant::bias_lse>(),
    kernel<DType::bf16, kTileD256, ForwardVariant::options_lse>(),
    kernel<DType::bf16, kTileD512, ForwardVariant::plain>(),
    kernel<DType::bf16, kTileD512, ForwardVariant::options_lse>(),
    kernel<DType::f16, kTileD64, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD64, ForwardVariant::lse>(),
    kernel<DType::f16, kTileD64, ForwardVariant::softcap>(),
    kernel<DType::f16, kTileD64, ForwardVariant::softcap_lse>(),
    kernel<DType::f16, kTileD64, ForwardVariant::bias>(),
    kernel<DType::f16, kTileD64, ForwardVariant::bias_lse>(),
    kernel<DType::f16, kTileD64Long, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD64Options, ForwardVariant::options>(),
    kernel<DType::f16, kTileD64Options, ForwardVariant::options_lse>(),
    kernel<DType::f16, kTileD128, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD128, ForwardVariant::lse>(),
    kernel<DType::f16, kTileD128, ForwardVariant::softcap>(),
    kernel<DType::f16, kTileD128, ForwardVariant::softcap_lse>(),
    kernel<DType::f16, kTileD128, ForwardVariant::bias>(),
    kernel<DType::f16, kTileD128, ForwardVariant::bias_lse>(),
    kernel<DType::f16, kTileD128, ForwardVariant::options>(),
    kernel<DType::f16, kTileD128, ForwardVariant::options_lse>(),
    kernel<DType::f16, kTileD192, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD192, ForwardVariant::options_lse>(),
    kernel<DType::f16, kTileD256, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD256, ForwardVariant::lse>(),
    kernel<DType::f16, kTileD256, ForwardVariant::softcap_lse>(),
    kernel<DType::f16, kTileD256, ForwardVariant::bias_lse>(),
    kernel<DType::f16, kTileD256, ForwardVariant::options_lse>(),
    kernel<DType::f16, kTileD512, ForwardVariant::plain>(),
    kernel<DType::f16, kTileD512, ForwardVariant::options_lse>(),
};
// clang-format on

std::atomic<unsigned long long*> rescale_counter{nullptr};

struct DeviceState {
    std::once_flag once;
    DeviceTraits traits;
    // Of kForwardKernels. The driver launches these 0.2-0.4 us faster than the runtime launches their symbols (H200,
    // 2026-11-24).
    std::array<CUfunction, std::size(kForwardKernels)> functions;
};

int32_t attribute(cudaDeviceAttr name, int32_t device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
    return value;
}

void set_up_device(int32_t device, DeviceState& state) {
    const int32_t major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int32_t minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    if (major != 9 || minor != 0)
        throw Error(FOVEAL_NO_DEVICE, "device " + std::to_string(device) + " has compute capability " +
                                          std::to_string(major) + "." + std::to_string(minor) +
                                          "; the sm90 backend needs 9.0");
    state.traits.sms = attribute(cudaDevAttrMultiProcessorCount, device);
    state.traits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
    // Two transfers a clock, of the bus' width in bits; the clock is in kHz. Where a virtual GPU hides them, an H200's.
    const double dram_bytes_per_second =
        2e3 * attribute(cudaDevAttrMemoryClockRate, device) * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
    if (dram_bytes_per_second > 0) state.traits.dram_bytes_per_second = dram_bytes_per_second;
    const CurrentDevice current(device);
    for (size_t i = 0; i < std::size(kForwardKernels); ++i) {
        const ForwardKernel& kernel = kForwardKernels[i];
        check(cudaFuncSetAttribute(kernel.address(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   shared_bytes(kForwardTiles[kernel.choice.tile_index].tile)),
              "cudaFuncSetAttribute");
        check(cudaGetFuncBySymbol(&state.functions[i], kernel.address()), "cudaGetFuncBySymbol");
    }
}

// The driver's functions that the runtime has no equal for, looked up once.
struct Driver {
    decltype(&cuTensorMapEncodeTiled) encode_tiled;
    decltype(&cuStreamGetCtx) stream_context;
    decltype(&cuCtxGetCurrent) current_context;
    decltype(&cuCtxPushCurrent) push_context;
    decltype(&cuCtxPopCurrent) pop_context;
    decltype(&cuCtxGetDevice) current_device;
    decltype(&cuLaunchKernelEx) launch_kernel;
};

template <typename Function>
void find_entry(const char* name, Function& function) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &result), name);
    if (result != cudaDriverEntryPointSuccess) throw Error(FOVEAL_NO_DEVICE, std::string("the driver has no ") + name);
    function = reinterpret_cast<Function>(entry);
}

const Driver& driver() {
    static const Driver entries = [] {
        Driver d{};
        find_entry("cuTensorMapEncodeTiled", d.encode_tiled);
        find_entry("cuStreamGetCtx", d.stream_context);
        find_entry("cuCtxGetCurrent", d.current_context);
        find_entry("cuCtxPushCurrent", d.push_context);
        find_entry("cuCtxPopCurrent", d.pop_context);
        find_entry("cuCtxGetDevice", d.current_device);
        find_entry("cuLaunchKernelEx", d.launch_kernel);
        return d;
    }();
    return entries;
}

void check(CUresult status, const char* what) {
    if (status != CUDA_SUCCESS)
        throw Error(FOVEAL_CUDA_ERROR, std::string(what) + ": CUresult " + std::to_string(status));
}

// A [b, s, h, d] tensor (varlen: b = 1) as the copy engine sees it: (column, row, head, batch).
struct MappedTensor {
    const char* name;
    const void* data;
    int64_t batch, rows, heads, head_dim;
    Strides strides;
};

CUtensorMap tensor_map(DType dtype, const MappedTensor& t, int32_t box_rows) {
    const cuuint64_t shape[4] = {static_cast<cuuint64_t>(t.head_dim), static_cast<cuuint64_t>(t.rows),
                                 static_cast<cuuint64_t>(t.heads), static_cast<cuuint64_t>(t.batch)};
    // A dimension of size 1 has no stride of its own (0); any multiple of 16 will do.
    const auto stride_bytes = [](int64_t elements) {
        return static_cast<cuuint64_t>(elements == 0 ? 16 : elements * 2);
    };
    const cuuint64_t strides[3] = {stride_bytes(t.strides.row), stride_bytes(t.strides.head),
                                   stride_bytes(t.strides.batch)};
    const cuuint32_t box[4] = {kPanelColumns, static_cast<cuuint32_t>(box_rows), 1, 1};
    const cuuint32_t element_strides[4] = {1, 1, 1, 1};
    // A box is 128 bytes wide. Fetching 256 at its misses, half of a row of d 128 for the box beside it, made what
    // waits for DRAM up to 9 % slower (H200, 2026-11-28: docs/performance-log, 72).
    CUtensorMap map;
    const CUresult result = driver().encode_tiled(
        &map, dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
        const_cast<void*>(t.data), shape, strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw Error(FOVEAL_CUDA_ERROR, std::string("cuTensorMapEncodeTiled refuses ") + t.name + " with CUresult " +
                                           std::to_string(result));
    return map;
}

ScoreMatrix score_matrix(const void* data, const Strides& strides, size_t element_bytes, int64_t columns) {
    const auto group = static_cast<size_t>(vector_elements(element_bytes));
    const bool aligned = reinterpret_cast<uintptr_t>(data) % (group * element_bytes) == 0;
    return {data, strides.batch, strides.row, strides.head,
            aligned && has_whole_vectors(strides, columns, element_bytes)};
}

ScoreOptions score_options_of(const Problem& p, const Pointers& pointers) {
    ScoreOptions options{};
    options.scale = p.scale;
    if (p.softcap > 0) {
        options.softcap = p.softcap;
        options.cap_argument = static_cast<float>(static_cast<double>(p.scale) / p.softcap);
        options.cap = softcap_polynomial(p.scale, p.softcap);
    }
    options.alibi_slopes = pointers.alibi_slopes;
    options.alibi_batch_stride = p.alibi_batch_stride;
    options.only_alibi = p.has_alibi && p.softcap <= 0 && !p.has_bias && !p.has_mask;
    // Under ALiBi the nearest keys weigh most: a row that meets them first rarely outgrows its reference.
    options.last_keys_first = p.has_alibi && p.window().right < kUnlimitedWidth;
    options.bias = score_matrix(pointers.bias, p.bias, bytes_of(p.bias_dtype), p.rows_k);
    options.bias_is_f32 = p.bias_dtype == DType::f32;
    options.mask = score_matrix(pointers.mask, p.mask, 1, p.rows_k);
    return options;
}

// The plan does not know where a bias lies.
const ForwardPlan& forward_of(const Plan& plan, const Pointers& pointers) {
    const Problem& p = plan.problem;
    const bool copied = !is_bias(plan.forward.choice.variant) ||
                        score_matrix(pointers.bias, p.bias, bytes_of(p.bias_dtype), p.rows_k).in_vectors;
    return copied ? plan.forward : plan.unaligned_bias;
}

ForwardParams params_of(const Problem& p, const ForwardPlan& forward, const Pointers& pointers) {
    ForwardParams params{};
    params.batch = static_cast<int32_t>(p.batch);
    params.rows_q = static_cast<int32_t>(p.rows_q);
    params.rows_k = static_cast<int32_t>(p.rows_k);
    params.mapped_rows_k = params.rows_k > 0 ? params.rows_k : 1;
    params.heads_k = static_cast<int32_t>(p.heads_k);
    params.heads_per_kv = static_cast<int32_t>(p.group());
    params.window = p.window();
    params.scale_log2 = static_cast<float>(static_cast<double>(p.scale) * kLog2E);
    const OrderChoice& order = forward.order;
    const ForwardTile& tile = kForwardTiles[forward.choice.tile_index].tile;
    params.heads_log2 = forward.heads_log2;
    params.least_saved_tiles = forward.least_saved_tiles;
    if (!p.varlen)
        params.order =
            FastTileOrder(tile_order(p, {tile.rows(), tile.keys, params.heads_log2}, order, forward.last_rows_first));
    params.by_heads_k = Divisor(params.heads_k);
    params.section_keys = order.section_keys;
    params.packed_section_keys = order.section_keys / params.heads_k;
    params.order.last_rows_first = forward.last_rows_first;
    params.bundle = order.bundle;
    params.bundle_units = Divisor(std::max(1, order.bundle / std::gcd(order.bundle, params.heads_per_kv)));
    params.passed_over_blocks = forward.passed_over_blocks;
    params.cu_seqlens_q = pointers.cu_seqlens_q;
    params.cu_seqlens_k = pointers.cu_seqlens_k;
    params.seqused_q = pointers.seqused_q;
    params.seqused_k = pointers.seqused_k;
    params.out = pointers.out;
    params.out_batch_stride = p.out.batch;
    params.out_row_stride = p.out.row;
    params.out_head_stride = p.out.head;
    params.lse = pointers.lse;
    params.lse_batch_stride = p.lse.batch;
    params.lse_head_stride = p.lse.head;
    params.head_dim_v = static_cast<int32_t>(p.head_dim_v);
    params.sinks = pointers.sinks;
    params.scores = score_options_of(p, pointers);
    params.rescales = rescale_counter.load(std::memory_order_relaxed);
    return params;
}

size_t kernel_index_of(DType dtype, ForwardChoice choice) {
    for (size_t i = 0; i < std::size(kForwardKernels); ++i)
        if (kForwardKernels[i].dtype == dtype && kForwardKernels[i].choice == choice) return i;
    throw Error(FOVEAL_INTERNAL_ERROR, "no sm90 forward kernel for this plan");
}

// The first call for a device sets it up.
DeviceState& state_of(int32_t device) {
    static std::array<DeviceState, kMaxDevices> states;
    if (device < 0 || device >= kMaxDevices)
        throw Error(FOVEAL_NO_DEVICE,
                    "device " + std::to_string(device) + " is not one of 0 to " + std::to_string(kMaxDevices - 1));
    DeviceState& state = states[static_cast<size_t>(device)];
    std::call_once(state.once, [&] { set_up_device(device, state); });
    return state;
}

}  // namespace

bool is_device_pointer(const void* pointer) {
    cudaPointerAttributes attributes{};
    if (pointer == nullptr) return false;
    if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

int32_t device_of(void* stream) {
    int device = 0;
    const cudaError_t status = cudaGetDevice(&device);
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver ||
        status == cudaErrorInitializationError) {
        cudaGetLastError();
        throw Error(FOVEAL_NO_DEVICE, std::string("the sm90 backend finds no GPU: ") + cudaGetErrorString(status));
    }
    check(status, "cudaGetDevice");
    if (stream == nullptr) return device;
    // Through its context: cudaStreamGetDevice would break a capture.
    CUcontext of_stream = nullptr, current = nullptr;
    check(driver().stream_context(static_cast<CUstream>(stream), &of_stream), "the context of the stream");
    check(driver().current_context(&current), "the current context");
    if (of_stream == current) return device;
    check(driver().push_context(of_stream), "cuCtxPushCurrent");
    const CUresult result = driver().current_device(&device);
    driver().pop_context(&current);
    check(result, "the device of the stream");
    return device;
}

const DeviceTraits& traits_of(int32_t device) { return state_of(device).traits; }

void launch_forward(const Plan& plan, const Pointers& pointers, void* stream) {
    if (plan.forward.grid == 0) return;
    const Problem& p = plan.problem;
    const ForwardPlan& forward = forward_of(plan, pointers);
    const ForwardTile& tile = kForwardTiles[forward.choice.tile_index].tile;
    const DeviceState& state = state_of(plan.device);
    const CurrentDevice current(plan.device);

    const int64_t maps = p.varlen ? 1 : p.batch;
    const MappedTensor of_q{"q", pointers.q, maps, p.rows_q, p.heads_q, p.head_dim, p.q};
    MappedTensor of_k{"k", pointers.k, maps, p.rows_k, p.heads_k, p.head_dim, p.k};
    MappedTensor of_v{"v", pointers.v, maps, p.rows_k, p.heads_k, p.head_dim_v, p.v};
    // A tensor map has no empty dimension: without keys K and V map a row of q, which the kernel masks and zeroes.
    if (p.rows_k == 0) of_k = of_v = {"q", pointers.q, maps, 1, p.heads_k, p.head_dim, p.q};
    CUtensorMap q = tensor_map(p.dtype, of_q, kWarpgroupRows);
    CUtensorMap packed_q = forward.heads_log2 > 0 ? tensor_map(p.dtype, of_q, kWarpRows) : q;
    CUtensorMap k = tensor_map(p.dtype, of_k, tile.keys);
    CUtensorMap v = tensor_map(p.dtype, of_v, tile.keys);
    CUtensorMap out =
        tensor_map(p.dtype, {"out", pointers.out, maps, p.rows_q, p.heads_q, p.head_dim_v, p.out}, kWarpRows);
    ForwardParams params = params_of(p, forward, pointers);
    void* arguments[] = {&q, &packed_q, &k, &v, &out, &params};

    CUlaunchConfig config{};
    config.gridDimX = static_cast<unsigned>(forward.grid);
    config.blockDimX = static_cast<unsigned>(tile.threads());
    config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = static_cast<unsigned>(shared_bytes(tile));
    config.hStream = static_cast<CUstream>(stream);
    // The kernel sets itself up while the one before it in the stream ends, and then waits for that end.
    CUlaunchAttribute overlap{};
    overlap.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    overlap.value.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = 1;
    check(
        driver().launch_kernel(&config, state.functions[kernel_index_of(p.dtype, forward.choice)], arguments, nullptr),
        "launch of the sm90 forward kernel");
}

void set_rescale_counter(unsigned long long* counter) { rescale_counter.store(counter, std::memory_order_relaxed); }

}  // namespace foveal::sm90
