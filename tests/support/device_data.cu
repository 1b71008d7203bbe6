// A case's data in device memory: filled, poisoned, scanned and gathered there, so that tensors of many gigabytes cost
// no more than their bytes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "tests/support/device_buffer.hpp"
#include "tests/support/device_data.hpp"
#include "tests/support/input_values.hpp"
#include "tests/support/oracle.hpp"

namespace foveal_testing {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 132 * 8;
// Tensors up to this size are mirrored on the host for reading; larger ones are gathered row by row.
constexpr int64_t kMirrorBytes = int64_t{64} << 20;

// A [b, s, h, d] or [total, h, d] tensor as kernels see it.
struct DeviceTensor {
    void* data;
    foveal_dtype dtype;
    int64_t batch_stride, row_stride, head_stride;
    int64_t batch, heads, channels, channel_stride;
    const int64_t* first_row;               // [b] of each sequence; NULL: 0
    const int64_t* used;                    // [b] used rows
    const int64_t* used_k;                  // [b] used keys
    const int64_t *seen_first, *seen_last;  // [b] of k and v, the keys that some row sees; else NULL
};

__device__ void store(void* data, foveal_dtype dtype, int64_t index, float value) {
    if (dtype == FOVEAL_F32) static_cast<float*>(data)[index] = value;
    if (dtype == FOVEAL_BF16) static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
    if (dtype == FOVEAL_F16) static_cast<__half*>(data)[index] = __float2half_rn(value);
    if (dtype == FOVEAL_E4M3)
        static_cast<__nv_fp8_storage_t*>(data)[index] = __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

__device__ float load(const void* data, foveal_dtype dtype, int64_t index) {
    if (dtype == FOVEAL_F32) return static_cast<const float*>(data)[index];
    if (dtype == FOVEAL_BOOL) return static_cast<const uint8_t*>(data)[index] == 0 ? 0.0f : 1.0f;
    if (dtype == FOVEAL_BF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
    if (dtype == FOVEAL_E4M3)
        return __half2float(__nv_cvt_fp8_to_halfraw(static_cast<const __nv_fp8_storage_t*>(data)[index], __NV_E4M3));
    return __half2float(static_cast<const __half*>(data)[index]);
}

__device__ int64_t first_element(const DeviceTensor& t, int64_t sequence, int64_t head, int64_t row) {
    const int64_t first_row = t.first_row == nullptr ? 0 : t.first_row[sequence];
    return sequence * t.batch_stride + (first_row + row) * t.row_stride + head * t.head_stride;
}

// blockIdx.y walks the sequences, blockIdx.x their elements.
__global__ void fill_inputs(DeviceTensor t, InputRecipe recipe, TensorId tensor) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t sequence = blockIdx.y; sequence < t.batch; sequence += gridDim.y) {
        Place place{tensor, sequence, 0, 0, 0, t.used_k[sequence]};
        const int64_t elements = t.used[sequence] * t.heads * t.channels;
        for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < elements; n += step) {
            place.channel = n % t.channels;
            place.head = n / t.channels % t.heads;
            place.row = n / t.channels / t.heads;
            const bool seen =
                t.seen_first == nullptr || (t.seen_first[sequence] <= place.row && place.row < t.seen_last[sequence]);
            store(t.data, t.dtype, first_element(t, sequence, place.head, place.row) + place.channel,
                  seen ? input_value(recipe, place) : unseen_value(place));
        }
    }
}

// A bias or a mask: rows are queries and channels keys, of which those beyond the used ones stay poison.
__global__ void fill_scores(DeviceTensor t, InputRecipe recipe, TensorId tensor) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t sequence = blockIdx.y; sequence < t.batch; sequence += gridDim.y) {
        Place place{tensor, sequence, 0, 0, 0, t.used_k[sequence]};
        const int64_t elements = t.used[sequence] * t.heads * place.len_k;
        for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < elements; n += step) {
            place.channel = n % place.len_k;
            place.head = n / place.len_k % t.heads;
            place.row = n / place.len_k / t.heads;
            const int64_t index = first_element(t, sequence, place.head, place.row) + place.channel;
            if (tensor == TensorId::kMask) {
                static_cast<uint8_t*>(t.data)[index] = mask_value(recipe, place);
            } else {
                store(t.data, t.dtype, index, bias_value(recipe, place));
            }
        }
    }
}

__global__ void poison(uint16_t* halves, int64_t count) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < count; n += step) halves[n] = kPoison16;
}

__global__ void gather_rows(DeviceTensor t, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < count * t.channels; n += step) {
        to[n] = load(t.data, t.dtype,
                     first_element(t, sequence, head, first + n / t.channels) + n % t.channels * t.channel_stride);
    }
}

// counts: poison, nan, infinite
__global__ void scan_elements(const void* data, foveal_dtype dtype, int64_t elements, unsigned long long* counts) {
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    unsigned long long found[3] = {};
    for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < elements; n += step) {
        const uint32_t bits =
            dtype == FOVEAL_F32 ? static_cast<const uint32_t*>(data)[n] : static_cast<const uint16_t*>(data)[n];
        const float value = load(data, dtype, n);
        if (bits == (dtype == FOVEAL_F32 ? kPoison32 : kPoison16)) {
            ++found[0];
        } else if (isnan(value)) {
            ++found[1];
        } else if (isinf(value)) {
            ++found[2];
        }
    }
    for (int i = 0; i < 3; ++i) {
        if (found[i] > 0) atomicAdd(counts + i, found[i]);
    }
}

int blocks_for(int64_t items) {
    return static_cast<int>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

class DeviceData final : public CaseData {
   public:
    explicit DeviceData(const Case& c) : CaseData(c) {
        args_ = shape_args(c, FOVEAL_BACKEND_SM90);
        upload_lengths();
        for (int i = 0; i < kTensors; ++i) allocate(static_cast<TensorId>(i));
        refill(c.seed);
        poison_outputs();
    }

    void poison_outputs() override {
        drop_mirrors();
        for (const TensorId id : {TensorId::kOut, TensorId::kLse}) {
            const auto count = static_cast<int64_t>(at(id).buffer.bytes()) / 2;
            if (count == 0) continue;
            poison<<<blocks_for(count), kThreads>>>(at(id).buffer.as<uint16_t>(), count);
            require_cuda(cudaGetLastError(), "poison");
        }
        synchronize();
    }

    void refill(uint64_t seed) override {
        drop_mirrors();
        case_.seed = seed;
        const InputRecipe recipe = recipe_of(case_);
        for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV, TensorId::kBias, TensorId::kMask}) {
            if (!has_tensor(case_, id) || buffer(id).bytes() == 0 || is_from_host(id)) continue;
            const DeviceTensor t = kernel_view(id);
            if (t.batch == 0) continue;
            const auto sequences = static_cast<unsigned>(std::min<int64_t>(t.batch, 65535));
            const int64_t elements = at(id).layout.buffer_elements / t.batch;
            const dim3 grid(static_cast<unsigned>(blocks_for(elements)), sequences);
            if (id == TensorId::kBias || id == TensorId::kMask) {
                fill_scores<<<grid, kThreads>>>(t, recipe, id);
            } else {
                fill_inputs<<<grid, kThreads>>>(t, recipe, id);
            }
            require_cuda(cudaGetLastError(), "fill");
        }
        if (case_.page_size > 0 || case_.keys_dtype() == FOVEAL_E4M3) upload_from_host();
        for (const TensorId id : {TensorId::kAlibi, TensorId::kSinks}) {
            if (!has_tensor(case_, id)) continue;
            std::vector<std::byte> values(buffer(id).bytes(), std::byte{0xFF});
            fill_head_values(case_, id, at(id).layout, values.data());
            buffer(id).upload(values.data());
        }
        synchronize();
    }

    // The result is new to the host: what was mirrored of it is stale.
    void synchronize() override {
        drop_mirrors();
        require_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    }

    void read(TensorId id, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) override {
        Tensor& tensor = at(id);
        {
            const std::scoped_lock lock(mutex_);
            if (tensor.layout.buffer_bytes() > kMirrorBytes && !is_from_host(id))
                return gather(id, sequence, head, first, count, to);
            std::vector<std::byte>& mirror = at(buffer_of(case_, id)).mirror;
            if (mirror.empty()) mirror = bytes(id);
        }
        read_host(case_, tensor.layout, id, at(buffer_of(case_, id)).mirror.data(), sequence, head, first, count, to);
    }

    OutputScan scan(TensorId output) override {
        const Tensor& tensor = at(output);
        OutputScan scan;
        scan.elements = tensor.layout.buffer_elements;
        std::vector<unsigned long long> counts(3, 0);
        const DeviceBuffer device_counts(counts);
        if (scan.elements > 0) {
            scan_elements<<<blocks_for(scan.elements), kThreads>>>(
                tensor.buffer.as(), tensor.layout.view.dtype, scan.elements, device_counts.as<unsigned long long>());
            require_cuda(cudaGetLastError(), "scan");
            device_counts.download(counts.data());
        }
        scan.poison = static_cast<int64_t>(counts[0]);
        scan.nan = static_cast<int64_t>(counts[1]);
        scan.infinite = static_cast<int64_t>(counts[2]);
        return scan;
    }

    std::vector<std::byte> bytes(TensorId id) override {
        std::vector<std::byte> copy(buffer(id).bytes());
        buffer(id).download(copy.data());
        return copy;
    }

   private:
    struct Tensor {
        TensorLayout layout;
        DeviceBuffer buffer;
        std::vector<std::byte> mirror;
    };

    Tensor& at(TensorId id) { return tensors_[static_cast<size_t>(id)]; }
    DeviceBuffer& buffer(TensorId id) { return at(buffer_of(case_, id)).buffer; }

    void drop_mirrors() {
        for (Tensor& tensor : tensors_) tensor.mirror.clear();
    }

    // The host knows where pages lie, and numbers in e4m3.
    bool is_from_host(TensorId id) const {
        if (id == TensorId::kQ) return case_.is_e4m3();
        return (id == TensorId::kK || id == TensorId::kV) && (case_.page_size > 0 || case_.keys_dtype() == FOVEAL_E4M3);
    }

    void upload_from_host() {
        const std::unique_ptr<CaseData> on_host = make_case_data(case_, FOVEAL_BACKEND_CPU);
        const auto upload = [&](TensorId id) {
            if (buffer_of(case_, id) == id && buffer(id).bytes() > 0) buffer(id).upload(on_host->bytes(id).data());
        };
        for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV})
            if (is_from_host(id)) upload(id);
        for (const TensorId id : {TensorId::kQDescale, TensorId::kKDescale, TensorId::kVDescale})
            if (has_tensor(case_, id)) upload(id);
    }

    void allocate(TensorId id) {
        if (!has_tensor(case_, id)) return;
        Tensor& tensor = at(id);
        tensor.layout = layout_of(case_, id);
        const bool owner = buffer_of(case_, id) == id;
        if (owner) tensor.buffer = DeviceBuffer(static_cast<size_t>(tensor.layout.buffer_bytes()));
        if (buffer(id).bytes() == 0) return;
        if (owner) require_cuda(cudaMemset(tensor.buffer.as(), 0xFF, tensor.buffer.bytes()), "cudaMemset");
        tensor_of(args_, id).data = buffer(id).as<std::byte>() + tensor.layout.offset * tensor.layout.element_bytes();
    }

    void upload_lengths() {
        if (case_.dropout > 0) {
            const auto state = case_.dropout_state();
            dropout_state_ = DeviceBuffer(std::vector<uint64_t>(state.begin(), state.end()));
            args_.dropout_state = dropout_state_.as<uint64_t>();
        }
        for (const NumbersArgument& numbers : numbers_of(case_)) {
            numbers_.emplace_back(numbers.values);
            (args_.*numbers.tensor).data = numbers_.back().as();
        }

        std::vector<int64_t> first_q, first_k, used_q, used_k, seen_first, seen_last;
        int64_t sum_q = 0, sum_k = 0;
        for (int64_t i = 0; i < case_.batch; ++i) {
            first_q.push_back(sum_q);
            first_k.push_back(sum_k);
            used_q.push_back(case_.used_q(i));
            used_k.push_back(case_.used_k(i));
            const KeyInterval seen = keys_seen_by_any(case_, i);
            seen_first.push_back(seen.first);
            seen_last.push_back(seen.last);
            sum_q += case_.varlen ? case_.length_q(i) : 0;
            sum_k += case_.varlen_k ? case_.length_k(i) : 0;
        }
        first_q_ = DeviceBuffer(first_q);
        first_k_ = DeviceBuffer(first_k);
        used_q_ = DeviceBuffer(used_q);
        used_k_ = DeviceBuffer(used_k);
        seen_first_ = DeviceBuffer(seen_first);
        seen_last_ = DeviceBuffer(seen_last);
        for (const TensorId id : {TensorId::kBias, TensorId::kMask})
            if (has_tensor(case_, id)) upload_extents(id);
    }

    const ScoreMatrix& matrix_of(TensorId id) const { return *(id == TensorId::kBias ? case_.bias : case_.mask); }

    void upload_extents(TensorId id) {
        std::vector<int64_t> queries, keys;
        for (int64_t i = 0; i < (matrix_of(id).by_sequence ? case_.batch : 1); ++i) {
            const ScoreExtent extent = score_extent(case_, matrix_of(id), i);
            queries.push_back(extent.queries);
            keys.push_back(extent.keys);
        }
        extents_[id == TensorId::kBias ? 0 : 1] = {DeviceBuffer(queries), DeviceBuffer(keys)};
    }

    // The tensor with rows and heads where kernels expect them; lse as rows of one channel.
    DeviceTensor kernel_view(TensorId id) {
        const foveal_tensor& view = tensor_of(args_, id);
        const Axes axes = axes_of(case_, id);
        const bool of_k = id == TensorId::kK || id == TensorId::kV;
        const bool of_scores = id == TensorId::kBias || id == TensorId::kMask;
        const bool shared = of_scores && !matrix_of(id).by_sequence;
        const Extents& extents = extents_[id == TensorId::kBias ? 0 : 1];
        return {view.data,
                view.dtype,
                stride_along(view, axes.sequence),
                stride_along(view, axes.row),
                stride_along(view, axes.head),
                shared ? 1 : case_.batch,
                view.shape[axes.head],
                channels_of(case_, id),
                channel_stride(view, id),
                of_scores ? nullptr : (of_k ? first_k_ : first_q_).as<int64_t>(),
                (of_scores ? extents.queries
                 : of_k    ? used_k_
                           : used_q_)
                    .as<int64_t>(),
                (of_scores ? extents.keys : used_k_).as<int64_t>(),
                of_k ? seen_first_.as<int64_t>() : nullptr,
                of_k ? seen_last_.as<int64_t>() : nullptr};
    }

    void gather(TensorId id, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) {
        const DeviceTensor t = kernel_view(id);
        const int64_t elements = count * t.channels;
        if (elements == 0) return;
        const DeviceBuffer rows(static_cast<size_t>(elements) * sizeof(float));
        gather_rows<<<blocks_for(elements), kThreads>>>(t, sequence, head, first, count, rows.as<float>());
        require_cuda(cudaGetLastError(), "gather");
        rows.download(to);
    }

    std::array<Tensor, kTensors> tensors_;
    std::vector<DeviceBuffer> numbers_;                 // i32, what the library reads
    DeviceBuffer dropout_state_;                        // u64 [2], likewise
    DeviceBuffer first_q_, first_k_, used_q_, used_k_;  // i64 [b], what the kernels here read
    DeviceBuffer seen_first_, seen_last_;               // i64 [b]
    struct Extents {
        DeviceBuffer queries, keys;  // i64 [b or 1]
    };
    std::array<Extents, 2> extents_;  // of bias and mask
    std::mutex mutex_;
};

}  // namespace

std::unique_ptr<CaseData> make_device_data(const Case& c) { return std::make_unique<DeviceData>(c); }

bool has_sm90_device() {
    int device = 0, major = 0;
    const bool found = cudaGetDevice(&device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
    if (!found) (void)cudaGetLastError();
    return found && major == 9;
}

}  // namespace foveal_testing
