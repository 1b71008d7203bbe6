#include "case_data.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "device_data.hpp"
#include "input_values.hpp"
#include "number_formats.hpp"
#include "parallel.hpp"

namespace foveal_testing {
namespace {

// Elements before and after an output: what a kernel writes there is found by scanning for lost poison.
constexpr int64_t kGuardElements = 256;

// A dimension in memory order, outermost first; logical: its index in the tensor's shape.
struct MemoryDimension {
    int logical;
    int64_t size;
    int64_t padding;
};

TensorLayout lay_out(foveal_dtype dtype, const std::vector<MemoryDimension>& dimensions, bool guarded) {
    TensorLayout layout;
    layout.view.dtype = dtype;
    layout.view.rank = static_cast<int32_t>(dimensions.size());
    int64_t stride = 1;
    int64_t elements = 1;
    int64_t offset = 0;
    for (size_t n = dimensions.size(); n-- > 0;) {
        const MemoryDimension& dim = dimensions[n];
        layout.view.shape[dim.logical] = dim.size;
        layout.view.stride[dim.logical] = stride;
        stride *= std::max<int64_t>(dim.size + dim.padding, 1);
        elements *= dim.size + dim.padding;
        if (dim.padding > 0 && n + 1 == dimensions.size()) offset = stride;  // the view begins after one padded row
    }
    const int64_t guard = guarded ? kGuardElements : 0;
    layout.offset = elements == 0 ? guard : offset + guard;
    layout.buffer_elements = (elements == 0 ? 0 : elements + offset) + 2 * guard;
    return layout;
}

TensorLayout lay_out_rows(const Case& c, int64_t rows, int64_t heads, int64_t channels, bool guarded) {
    const bool pad = c.padded;
    const int first = c.varlen ? 0 : 1;  // index of the row in the shape
    const MemoryDimension row{first, rows, pad ? 3 : 0};
    const MemoryDimension head{first + 1, heads, pad ? 1 : 0};
    const MemoryDimension channel{first + 2, channels, pad ? 8 : 0};  // 16 bytes or a multiple
    std::vector<MemoryDimension> dimensions;
    if (!c.varlen) dimensions.push_back({0, c.batch, pad ? 1 : 0});
    dimensions.push_back(c.bhsd ? head : row);
    dimensions.push_back(c.bhsd ? row : head);
    dimensions.push_back(channel);
    return lay_out(c.dtype, dimensions, guarded);
}

TensorLayout lay_out_lse(const Case& c) {
    const int first = c.varlen ? 0 : 1;
    std::vector<MemoryDimension> dimensions;
    if (!c.varlen) dimensions.push_back({0, c.batch, c.padded ? 1 : 0});
    dimensions.push_back({first, c.heads_q, c.padded ? 1 : 0});
    dimensions.push_back({first + 1, c.rows_q, c.padded ? 4 : 0});
    return lay_out(FOVEAL_F32, dimensions, true);
}

// Element index in the buffer of (row, channel) of a sequence and head.
int64_t element_index(const Case& c, const TensorLayout& layout, TensorId id, int64_t sequence, int64_t head,
                      int64_t row) {
    const int64_t* stride = layout.view.stride;
    const bool of_q = id == TensorId::kQ || id == TensorId::kOut || id == TensorId::kLse;
    const int64_t first_row = of_q ? c.first_row_q(sequence) : c.first_row_k(sequence);
    const int64_t batch_offset = c.varlen ? 0 : sequence * stride[0];
    const int row_dim = (c.varlen ? 0 : 1) + (id == TensorId::kLse ? 1 : 0);
    const int head_dim = (c.varlen ? 0 : 1) + (id == TensorId::kLse ? 0 : 1);
    return layout.offset + batch_offset + (first_row + row) * stride[row_dim] + head * stride[head_dim];
}

int64_t row_stride(const Case& c, const TensorLayout& layout, TensorId id) {
    return layout.view.stride[(c.varlen ? 0 : 1) + (id == TensorId::kLse ? 1 : 0)];
}

float load(const std::byte* buffer, foveal_dtype dtype, int64_t index) {
    if (dtype == FOVEAL_F32) {
        float value;
        std::memcpy(&value, buffer + index * 4, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, buffer + index * 2, 2);
    return dtype == FOVEAL_BF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

void store(std::byte* buffer, foveal_dtype dtype, int64_t index, float value) {
    if (dtype == FOVEAL_F32) {
        std::memcpy(buffer + index * 4, &value, 4);
        return;
    }
    const uint16_t bits = dtype == FOVEAL_BF16 ? float_to_bf16(value) : float_to_f16(value);
    std::memcpy(buffer + index * 2, &bits, 2);
}

class HostData final : public CaseData {
   public:
    explicit HostData(const Case& c) : CaseData(c) {
        args_ = shape_args(c, FOVEAL_BACKEND_CPU);
        for (const TensorId id : kTensors) allocate(id);
        set_lengths(args_.cu_seqlens_q, cu_q_, c.varlen ? cumulated(c.lengths_q) : std::vector<int32_t>{});
        set_lengths(args_.cu_seqlens_k, cu_k_, c.varlen ? cumulated(c.lengths_k) : std::vector<int32_t>{});
        set_lengths(args_.seqused_q, used_q_, narrowed(c.seqused_q));
        set_lengths(args_.seqused_k, used_k_, narrowed(c.seqused_k));
        refill(c.seed);
        poison_outputs();
    }

    void poison_outputs() override {
        for (const TensorId id : {TensorId::kOut, TensorId::kLse}) {
            std::vector<std::byte>& buffer = at(id).buffer;
            for (size_t i = 0; i + 1 < buffer.size(); i += 2) std::memcpy(buffer.data() + i, &kPoison16, 2);
        }
    }

    void refill(uint64_t seed) override {
        case_.seed = seed;
        for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV}) fill(id);
    }

    void synchronize() override {}

    void read(TensorId id, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) override {
        read_host(case_, at(id).layout, id, at(id).buffer.data(), sequence, head, first, count, to);
    }

    OutputScan scan(TensorId output) override { return scan_host(at(output).layout.view.dtype, at(output).buffer); }

    std::vector<std::byte> bytes(TensorId output) override { return at(output).buffer; }

   private:
    static constexpr std::array kTensors = {TensorId::kQ, TensorId::kK, TensorId::kV, TensorId::kOut, TensorId::kLse};
    struct Tensor {
        TensorLayout layout;
        std::vector<std::byte> buffer;
    };

    Tensor& at(TensorId id) { return tensors_[static_cast<size_t>(id)]; }

    void allocate(TensorId id) {
        if (id == TensorId::kLse && !case_.lse) return;
        Tensor& tensor = at(id);
        tensor.layout = layout_of(case_, id);
        try {
            tensor.buffer.assign(static_cast<size_t>(tensor.layout.buffer_bytes()), std::byte{0xFF});
        } catch (const std::bad_alloc&) {
            throw OutOfMemory("host memory for " + std::string(tensor_name(id)) + " of " + to_text(case_));
        }
        foveal_tensor& view = tensor_of(args_, id);
        if (!tensor.buffer.empty())
            view.data = tensor.buffer.data() + tensor.layout.offset * tensor.layout.element_bytes();
    }

    static void set_lengths(foveal_tensor& tensor, std::vector<int32_t>& owner, std::vector<int32_t> values) {
        owner = std::move(values);
        if (tensor.rank != 0) tensor.data = owner.data();
    }

    void fill(TensorId id) {
        const bool of_q = id == TensorId::kQ;
        const int64_t heads = of_q ? case_.heads_q : case_.heads_k;
        const InputRecipe recipe = recipe_of(case_);
        parallel_for(case_.batch * heads,
                     [&](int64_t item, int64_t) { fill_head(id, recipe, item / heads, item % heads); });
    }

    void fill_head(TensorId id, const InputRecipe& recipe, int64_t sequence, int64_t head) {
        Tensor& tensor = at(id);
        const int64_t rows = id == TensorId::kQ ? case_.used_q(sequence) : case_.used_k(sequence);
        const int64_t channels = id == TensorId::kV ? case_.head_dim_v : case_.head_dim;
        Place place{static_cast<int>(id), sequence, head, 0, 0, case_.used_k(sequence)};
        const int64_t begin = element_index(case_, tensor.layout, id, sequence, head, 0);
        const int64_t stride = row_stride(case_, tensor.layout, id);
        for (place.row = 0; place.row < rows; ++place.row) {
            for (place.channel = 0; place.channel < channels; ++place.channel) {
                store(tensor.buffer.data(), case_.dtype, begin + place.row * stride + place.channel,
                      input_value(recipe, place));
            }
        }
    }

    std::array<Tensor, 5> tensors_;
    std::vector<int32_t> cu_q_, cu_k_, used_q_, used_k_;
};

foveal_tensor lengths_tensor(int64_t entries) {
    foveal_tensor tensor{};
    tensor.dtype = FOVEAL_I32;
    tensor.rank = 1;
    tensor.shape[0] = entries;
    tensor.stride[0] = 1;
    return tensor;
}

// |v| that fp32 sums of weights up to 1 still carry: what the textbook forward can do, and no more.
float v_limit_of(const Case& c) {
    if (c.dtype == FOVEAL_F16) return 65504 * 0.98f;
    int64_t longest = 1;
    for (int64_t i = 0; i < c.batch; ++i) longest = std::max(longest, c.used_k(i));
    return static_cast<float>(largest_finite(c.dtype) / (2.0 * static_cast<double>(longest)));
}

}  // namespace

const char* tensor_name(TensorId id) {
    constexpr std::array kNames = {"q", "k", "v", "out", "lse"};
    return kNames[static_cast<size_t>(id)];
}

foveal_tensor& tensor_of(foveal_forward_args& args, TensorId id) {
    switch (id) {
        case TensorId::kQ:
            return args.q;
        case TensorId::kK:
            return args.k;
        case TensorId::kV:
            return args.v;
        case TensorId::kOut:
            return args.out;
        case TensorId::kLse:
            return args.lse;
    }
    return args.q;
}

std::vector<int32_t> cumulated(const std::vector<int64_t>& lengths) {
    std::vector<int32_t> sums = {0};
    for (const int64_t length : lengths) sums.push_back(sums.back() + static_cast<int32_t>(length));
    return sums;
}

std::vector<int32_t> narrowed(const std::optional<std::vector<int64_t>>& lengths) {
    std::vector<int32_t> narrow;
    if (!lengths) return narrow;
    for (const int64_t length : *lengths) narrow.push_back(static_cast<int32_t>(length));
    return narrow;
}

void read_host(const Case& c, const TensorLayout& layout, TensorId id, const std::byte* buffer, int64_t sequence,
               int64_t head, int64_t first, int64_t count, float* to) {
    const bool values = id == TensorId::kV || id == TensorId::kOut;
    const int64_t channels = id == TensorId::kLse ? 1 : values ? c.head_dim_v : c.head_dim;
    const int64_t begin = element_index(c, layout, id, sequence, head, first);
    const int64_t stride = row_stride(c, layout, id);
    for (int64_t row = 0; row < count; ++row) {
        for (int64_t i = 0; i < channels; ++i) *to++ = load(buffer, layout.view.dtype, begin + row * stride + i);
    }
}

OutputScan scan_host(foveal_dtype dtype, const std::vector<std::byte>& buffer) {
    OutputScan scan;
    const int64_t element = dtype == FOVEAL_F32 ? 4 : 2;
    scan.elements = static_cast<int64_t>(buffer.size()) / element;
    for (int64_t i = 0; i < scan.elements; ++i) {
        uint32_t bits = 0;
        std::memcpy(&bits, buffer.data() + i * element, static_cast<size_t>(element));
        const float value = load(buffer.data(), dtype, i);
        if (bits == (element == 4 ? kPoison32 : kPoison16)) {
            ++scan.poison;
        } else if (std::isnan(value)) {
            ++scan.nan;
        } else if (std::isinf(value)) {
            ++scan.infinite;
        }
    }
    return scan;
}

TensorLayout layout_of(const Case& c, TensorId id) {
    switch (id) {
        case TensorId::kQ:
            return lay_out_rows(c, c.rows_q, c.heads_q, c.head_dim, false);
        case TensorId::kK:
            return lay_out_rows(c, c.rows_k, c.heads_k, c.head_dim, false);
        case TensorId::kV:
            return lay_out_rows(c, c.rows_k, c.heads_k, c.head_dim_v, false);
        case TensorId::kOut:
            return lay_out_rows(c, c.rows_q, c.heads_q, c.head_dim_v, true);
        case TensorId::kLse:
            return lay_out_lse(c);
    }
    return {};
}

foveal_forward_args shape_args(const Case& c, foveal_backend backend) {
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = backend;
    for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV, TensorId::kOut}) {
        tensor_of(args, id) = layout_of(c, id).view;
    }
    if (c.lse) args.lse = layout_of(c, TensorId::kLse).view;
    if (c.varlen) args.cu_seqlens_q = args.cu_seqlens_k = lengths_tensor(c.batch + 1);
    if (c.seqused_q) args.seqused_q = lengths_tensor(c.batch);
    if (c.seqused_k) args.seqused_k = lengths_tensor(c.batch);
    if (c.scale) args.scale = *c.scale;
    args.alignment = c.top_left ? FOVEAL_TOP_LEFT : FOVEAL_BOTTOM_RIGHT;
    args.window_left = c.window_left;
    args.window_right = c.window_right;
    return args;
}

InputRecipe recipe_of(const Case& c) {
    InputRecipe recipe;
    const double scale = c.effective_scale();
    recipe.seed = c.seed;
    if (c.logit_sd && scale != 0) {
        recipe.q_factor =
            static_cast<float>(*c.logit_sd / (std::abs(scale) * std::sqrt(static_cast<double>(c.head_dim))));
    }
    recipe.flat = c.flat;
    recipe.v_limit = c.vmax ? v_limit_of(c) : 0.0f;
    recipe.steered = (!c.sinks.empty() || c.grow_nats != 0) && scale != 0;
    if (!recipe.steered) return recipe;
    const auto height = [scale](double nats) { return static_cast<float>(nats / (scale * kSteering)); };
    recipe.grow_per_key = height(c.grow_nats / 128);
    for (const Sink& sink : c.sinks) {
        recipe.sink_position[recipe.sinks] = static_cast<int>(sink.position);
        recipe.sink_height[recipe.sinks++] = height(sink.nats);
    }
    return recipe;
}

#if !FOVEAL_HAS_CUDA
std::unique_ptr<CaseData> make_device_data(const Case&) {
    throw std::runtime_error("this build has no CUDA: no device memory");
}

bool has_sm90_device() { return false; }
#endif

std::unique_ptr<CaseData> make_case_data(const Case& c, foveal_backend backend) {
    if (backend == FOVEAL_BACKEND_CPU) return std::make_unique<HostData>(c);
    if (backend == FOVEAL_BACKEND_SM90) return make_device_data(c);
    throw std::invalid_argument("make_case_data: backend must be cpu or sm90");
}

}  // namespace foveal_testing
