#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "tests/support/case_pages.hpp"
#include "tests/support/device_data.hpp"
#include "tests/support/input_values.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/parallel.hpp"

namespace foveal_testing {
namespace {

// Element index in the buffer of the first channel of a row of a sequence and head.
int64_t element_index(const Case& c, const TensorLayout& layout, TensorId id, int64_t sequence, int64_t head,
                      int64_t row) {
    const Axes axes = axes_of(c, id);
    const bool of_k = id == TensorId::kK || id == TensorId::kV ||
                      (c.row_descales && (id == TensorId::kKDescale || id == TensorId::kVDescale));
    if (of_k && c.page_size > 0)
        return layout.offset + page_at(c, sequence, row / c.page_size) * stride_along(layout.view, axes.sequence) +
               row % c.page_size * stride_along(layout.view, axes.row) + head * stride_along(layout.view, axes.head);
    const int64_t first_row = of_k ? c.first_row_k(sequence) : c.first_row_q(sequence);
    return layout.offset + sequence * stride_along(layout.view, axes.sequence) +
           (first_row + row) * stride_along(layout.view, axes.row) + head * stride_along(layout.view, axes.head);
}

float load(const std::byte* buffer, foveal_dtype dtype, int64_t index) {
    if (dtype == FOVEAL_F32) {
        float value;
        std::memcpy(&value, buffer + index * 4, 4);
        return value;
    }
    if (dtype == FOVEAL_BOOL) return buffer[index] == std::byte{0} ? 0.0f : 1.0f;
    if (dtype == FOVEAL_E4M3) return e4m3_to_float(static_cast<uint8_t>(buffer[index]));
    uint16_t bits;
    std::memcpy(&bits, buffer + index * 2, 2);
    return dtype == FOVEAL_BF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

void store(std::byte* buffer, foveal_dtype dtype, int64_t index, float value) {
    if (dtype == FOVEAL_F32) {
        std::memcpy(buffer + index * 4, &value, 4);
        return;
    }
    if (dtype == FOVEAL_E4M3) {
        buffer[index] = std::byte{float_to_e4m3(value)};
        return;
    }
    const uint16_t bits = dtype == FOVEAL_BF16 ? float_to_bf16(value) : float_to_f16(value);
    std::memcpy(buffer + index * 2, &bits, 2);
}

class HostData final : public CaseData {
   public:
    explicit HostData(const Case& c) : CaseData(c) {
        args_ = shape_args(c, FOVEAL_BACKEND_CPU);
        for (int i = 0; i < kTensors; ++i) allocate(static_cast<TensorId>(i));
        for (const NumbersArgument& numbers : numbers_of(c)) {
            numbers_.push_back(numbers.values);
            (args_.*numbers.tensor).data = numbers_.back().data();
        }
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
        dropout_state_ = case_.dropout_state();
        if (case_.dropout > 0) args_.dropout_state = dropout_state_.data();
        for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV}) fill(id);
        for (const TensorId id : {TensorId::kAlibi, TensorId::kSinks}) {
            if (has_tensor(case_, id)) fill_head_values(case_, id, at(id).layout, at(id).buffer.data());
        }
        for (const TensorId id : {TensorId::kQDescale, TensorId::kKDescale, TensorId::kVDescale}) fill_descales(id);
        if (case_.bias) fill_scores(TensorId::kBias, *case_.bias);
        if (case_.mask) fill_scores(TensorId::kMask, *case_.mask);
    }

    void synchronize() override {}

    void read(TensorId id, int64_t sequence, int64_t head, int64_t first, int64_t count, float* to) override {
        read_host(case_, at(id).layout, id, buffer(id).data(), sequence, head, first, count, to);
    }

    OutputScan scan(TensorId output) override { return scan_host(at(output).layout.view.dtype, at(output).buffer); }

    std::vector<std::byte> bytes(TensorId output) override { return at(output).buffer; }

   private:
    struct Tensor {
        TensorLayout layout;
        std::vector<std::byte> buffer;
    };

    Tensor& at(TensorId id) { return tensors_[static_cast<size_t>(id)]; }
    std::vector<std::byte>& buffer(TensorId id) { return at(buffer_of(case_, id)).buffer; }

    void allocate(TensorId id) {
        if (!has_tensor(case_, id)) return;
        Tensor& tensor = at(id);
        tensor.layout = layout_of(case_, id);
        try {
            if (buffer_of(case_, id) == id)
                tensor.buffer.assign(static_cast<size_t>(tensor.layout.buffer_bytes()), std::byte{0xFF});
        } catch (const std::bad_alloc&) {
            throw OutOfMemory("host memory for " + std::string(tensor_name(id)) + " of " + to_text(case_));
        }
        foveal_tensor& view = tensor_of(args_, id);
        if (!buffer(id).empty()) view.data = buffer(id).data() + tensor.layout.offset * tensor.layout.element_bytes();
    }

    void fill(TensorId id) {
        const bool of_q = id == TensorId::kQ;
        const int64_t heads = of_q ? case_.heads_q : case_.heads_k;
        const InputRecipe recipe = recipe_of(case_);
        parallel_for(case_.batch * heads,
                     [&](int64_t item, int64_t) { fill_head(id, recipe, item / heads, item % heads); });
    }

    void fill_head(TensorId id, const InputRecipe& recipe, int64_t sequence, int64_t head) {
        const TensorLayout& layout = at(id).layout;
        const int64_t rows = id == TensorId::kQ ? case_.used_q(sequence) : case_.used_k(sequence);
        const KeyInterval filled = id == TensorId::kQ ? KeyInterval{0, rows} : keys_seen_by_any(case_, sequence);
        Place place{id, sequence, head, 0, 0, case_.used_k(sequence)};
        // What all sequences share, the first one fills.
        for (place.row = id != TensorId::kQ && sequence > 0 ? case_.common : 0; place.row < rows; ++place.row) {
            const bool seen = filled.first <= place.row && place.row < filled.last;
            const int64_t begin = element_index(case_, layout, id, sequence, head, place.row);
            const int64_t head_k = id == TensorId::kQ ? head / case_.group() : head;
            const float descale = descale_of(case_, id, sequence, head_k, place.row);
            for (place.channel = 0; place.channel < channels_of(case_, id); ++place.channel) {
                store(buffer(id).data(), layout.view.dtype, begin + place.channel,
                      (seen ? input_value(recipe, place) : unseen_value(place)) / descale);
            }
        }
    }

    void fill_descales(TensorId id) {
        if (!has_tensor(case_, id)) return;
        for (int64_t sequence = 0; sequence < case_.batch; ++sequence) {
            // Those of rows that no query sees stay NaN.
            const bool of_rows = case_.row_descales && id != TensorId::kQDescale;
            const KeyInterval rows = of_rows ? keys_seen_by_any(case_, sequence) : KeyInterval{0, 1};
            for (int64_t head = 0; head < case_.heads_k; ++head)
                for (int64_t row = rows.first; row < rows.last; ++row)
                    store(at(id).buffer.data(), FOVEAL_F32,
                          element_index(case_, at(id).layout, id, sequence, head, row),
                          descale_of(case_, id, sequence, head, row));
        }
    }

    // A bias or a mask.
    void fill_scores(TensorId id, const ScoreMatrix& matrix) {
        const foveal_tensor& view = at(id).layout.view;
        const int64_t heads = view.shape[1], rows = view.shape[2];
        const InputRecipe recipe = recipe_of(case_);
        parallel_for(view.shape[0] * heads * rows, [&](int64_t item, int64_t) {
            const int64_t sequence = item / rows / heads;
            const ScoreExtent extent = score_extent(case_, matrix, sequence);
            Place place{id, sequence, item / rows % heads, item % rows, 0, extent.keys};
            if (place.row < extent.queries) fill_score_row(recipe, place, view.dtype);
        });
    }

    void fill_score_row(const InputRecipe& recipe, Place place, foveal_dtype dtype) {
        std::byte* to = at(place.tensor).buffer.data();
        int64_t index =
            element_index(case_, at(place.tensor).layout, place.tensor, place.sequence, place.head, place.row);
        for (; place.channel < place.len_k; ++place.channel, ++index) {
            if (place.tensor == TensorId::kMask) {
                to[index] = std::byte{mask_value(recipe, place)};
            } else {
                store(to, dtype, index, bias_value(recipe, place));
            }
        }
    }

    std::array<Tensor, kTensors> tensors_;
    std::vector<std::vector<int32_t>> numbers_;  // of numbers_of()
    std::array<uint64_t, 2> dropout_state_{};
};

// The slopes of the ALiBi paper: the powers of 2^(-8/n), n the power of two at or below the number of heads, and then
// every other one of those for 2n.
float paper_slope(int64_t head, int64_t heads) {
    int64_t n = 1;
    while (2 * n <= heads) n *= 2;
    const double exponent = head < n ? -8.0 * static_cast<double>(head + 1) / static_cast<double>(n)
                                     : -4.0 * static_cast<double>(2 * (head - n) + 1) / static_cast<double>(n);
    return static_cast<float>(std::exp2(exponent));
}

// |v| that fp32 sums of weights up to 1 still carry: what the textbook forward can do, and no more.
float v_limit_of(const Case& c) {
    if (c.dtype == FOVEAL_F16) return 65504 * 0.98f;
    if (c.is_e4m3()) return 448 * 0.98f;
    int64_t longest = 1;
    for (int64_t i = 0; i < c.batch; ++i) longest = std::max(longest, c.used_k(i));
    return static_cast<float>(largest_finite(c.dtype) / (2.0 * static_cast<double>(longest)));
}

}  // namespace

ScoreExtent score_extent(const Case& c, const ScoreMatrix& matrix, int64_t of) {
    ScoreExtent extent{0, 0};
    for (int64_t i = 0; i < c.batch; ++i) {
        if (matrix.by_sequence && i != of) continue;
        extent = {std::max(extent.queries, c.used_q(i)), std::max(extent.keys, c.used_k(i))};
    }
    if (!matrix.by_query) extent.queries = std::min<int64_t>(extent.queries, 1);
    if (!matrix.by_key) extent.keys = std::min<int64_t>(extent.keys, 1);
    return extent;
}

void fill_head_values(const Case& c, TensorId id, const TensorLayout& layout, std::byte* buffer) {
    const InputRecipe recipe = recipe_of(c);
    const int64_t sequences = axes_of(c, id).sequence < 0 ? 1 : c.batch;
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
        for (int64_t head = 0; head < c.heads_q; ++head) {
            const float value = id == TensorId::kSinks
                                    ? *c.sink_logit + normal_of(hash_of(recipe, {id, sequence, head, 0, 0, 0}))
                                    : paper_slope(head, c.heads_q) * (1 + 0.25f * static_cast<float>(sequence % 8));
            store(buffer, FOVEAL_F32, element_index(c, layout, id, sequence, head, 0), value);
        }
    }
}

float descale_of(const Case& c, TensorId id, int64_t sequence, int64_t head_k, int64_t row) {
    const TensorId descale = id == TensorId::kQ || id == TensorId::kQDescale   ? TensorId::kQDescale
                             : id == TensorId::kK || id == TensorId::kKDescale ? TensorId::kKDescale
                                                                               : TensorId::kVDescale;
    if (!has_tensor(c, descale)) return 1;
    const bool of_rows = c.row_descales && descale != TensorId::kQDescale;
    const bool shared = c.one_descale || (of_rows && row < c.common);  // by all sequences
    const Place place{descale, shared ? 0 : sequence, c.one_descale ? 0 : head_k, of_rows ? row : 0, 0, 0};
    const uint64_t hash = hash_of(recipe_of(c), place);
    return (1.0f + static_cast<float>(hash >> 40) * 0x1p-24f) / 64;  // few of the products are exact
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

std::vector<NumbersArgument> numbers_of(const Case& c) {
    using Args = foveal_forward_args;
    std::vector<NumbersArgument> numbers;
    if (c.varlen) numbers.push_back({&Args::cu_seqlens_q, cumulated(c.lengths_q)});
    if (c.varlen_k) numbers.push_back({&Args::cu_seqlens_k, cumulated(c.lengths_k)});
    if (c.seqused_q) numbers.push_back({&Args::seqused_q, narrowed(c.seqused_q)});
    if (lengths_to_give(c)) numbers.push_back({&Args::seqused_k, narrowed(lengths_to_give(c))});
    if (c.query_offset) numbers.push_back({&Args::query_offset, narrowed(c.query_offset)});
    if (c.page_size > 0 && c.lists_pages) {
        numbers.push_back({&Args::page_indptr, page_indptr(c)});
        numbers.push_back({&Args::page_indices, page_indices(c)});
    } else if (c.page_size > 0) {
        numbers.push_back({&Args::block_table, block_table(c)});
    }
    if (c.tree) numbers.push_back({&Args::tree_mask, tree_mask(c)});
    return numbers;
}

void read_host(const Case& c, const TensorLayout& layout, TensorId id, const std::byte* buffer, int64_t sequence,
               int64_t head, int64_t first, int64_t count, float* to) {
    const int64_t channels = channels_of(c, id);
    const int64_t to_next = channel_stride(layout.view, id);
    const bool in_e4m3 = layout.view.dtype == FOVEAL_E4M3;
    const int64_t head_k = id == TensorId::kQ ? head / c.group() : head;
    for (int64_t row = first; row < first + count; ++row) {
        const int64_t begin = element_index(c, layout, id, sequence, head, row);
        const float descale = in_e4m3 ? descale_of(c, id, sequence, head_k, row) : 1.0f;
        for (int64_t i = 0; i < channels; ++i, ++to) {
            *to = load(buffer, layout.view.dtype, begin + i * to_next);
            if (in_e4m3) *to = round_to(c.computed_dtype(), *to * descale);
        }
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

InputRecipe recipe_of(const Case& c) {
    InputRecipe recipe;
    const double scale = c.effective_scale();
    recipe.seed = c.seed;
    if (c.logit_sd && scale != 0) {
        recipe.q_factor =
            static_cast<float>(*c.logit_sd / (std::abs(scale) * std::sqrt(static_cast<double>(c.head_dim))));
    }
    recipe.nan_value = c.nan_value.value_or(-1);
    recipe.flat = c.flat;
    recipe.v_limit = c.vmax ? v_limit_of(c) : 0.0f;
    recipe.bias_inf = c.bias_inf;
    recipe.steered = (!c.sink_keys.empty() || c.grow_nats != 0) && scale != 0;
    if (!recipe.steered) return recipe;
    const auto height = [scale](double nats) { return static_cast<float>(nats / (scale * kSteering)); };
    recipe.grow_per_key = height(c.grow_nats / 128);
    for (const SinkKey& sink : c.sink_keys) {
        recipe.sink_position[recipe.sink_keys] = static_cast<int>(sink.position);
        recipe.sink_height[recipe.sink_keys++] = height(sink.nats);
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
