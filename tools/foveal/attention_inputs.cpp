#include "attention_inputs.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "commands.hpp"
#include "element_conversion.hpp"

namespace foveal_tool {
namespace {

using Args = foveal_forward_args;
using Element = TensorOption::Element;

// Of the format, of foveal.h.
constexpr std::array<std::pair<const char*, foveal_dtype>, 6> kDtypes = {{{"F32", FOVEAL_F32},
                                                                          {"BF16", FOVEAL_BF16},
                                                                          {"F16", FOVEAL_F16},
                                                                          {"F8_E4M3", FOVEAL_E4M3},
                                                                          {"I32", FOVEAL_I32},
                                                                          {"BOOL", FOVEAL_BOOL}}};

foveal_dtype dtype_of(const std::string& name, const std::string& dtype) {
    for (const auto& [text, value] : kDtypes) {
        if (dtype == text) return value;
    }
    throw Failure(fmt::format("{} is {}; values may be BF16, F16, F32 or F8_E4M3, lengths I32, a mask BOOL",
                              shown_name(name), dtype));
}

bool contains(const std::vector<std::string>& list, const std::string& name) {
    return std::find(list.begin(), list.end(), name) != list.end();
}

std::string names_in(const Safetensors& file) {
    constexpr size_t kMaxNames = 20;
    std::vector<std::string> names;
    for (const auto& [name, tensor] : file.tensors) {
        if (names.size() == kMaxNames) {
            names.push_back("...");
            break;
        }
        names.push_back(shown_name(name));
    }
    return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

std::vector<int32_t> integers(const StoredTensor& stored) {
    std::vector<int32_t> values(stored.bytes.size() / sizeof(int32_t));
    if (!values.empty()) std::memcpy(values.data(), stored.bytes.data(), stored.bytes.size());
    return values;
}

// Returns the length of each sequence.
std::vector<int64_t> checked_lengths(const std::string& name, const StoredTensor& stored, int64_t total) {
    const std::vector<int32_t> sums = integers(stored);
    if (sums.front() != 0)
        throw Failure(fmt::format("{} begins with {}; it must begin with 0", shown_name(name), sums.front()));
    if (sums.back() != total)
        throw Failure(fmt::format("{} ends with {}, but there are {} rows", shown_name(name), sums.back(), total));
    std::vector<int64_t> lengths;
    for (size_t i = 1; i < sums.size(); ++i) {
        if (sums[i] < sums[i - 1]) {
            throw Failure(fmt::format("{} falls from {} to {} at entry {}; it must ascend", shown_name(name),
                                      sums[i - 1], sums[i], i));
        }
        lengths.push_back(int64_t{sums[i]} - sums[i - 1]);
    }
    return lengths;
}

void check_used(const std::string& name, const StoredTensor& stored, const std::vector<int64_t>& lengths) {
    const std::vector<int32_t> used = integers(stored);
    for (size_t i = 0; i < used.size(); ++i) {
        if (used[i] < 0 || used[i] > lengths[i]) {
            throw Failure(fmt::format("{} is {} at entry {}; the sequence has {} rows", shown_name(name), used[i], i,
                                      lengths[i]));
        }
    }
}

}  // namespace

std::string safetensors_dtype(foveal_dtype dtype) {
    for (const auto& [text, value] : kDtypes) {
        if (dtype == value) return text;
    }
    return "?";
}

foveal_dtype element_type_named(const std::string& name) {
    return name == "f32" ? FOVEAL_F32 : name == "bf16" ? FOVEAL_BF16 : FOVEAL_F16;
}

foveal_tensor packed_tensor(foveal_dtype dtype, const std::vector<int64_t>& shape) {
    foveal_tensor tensor{};
    tensor.dtype = dtype;
    tensor.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = stride;
        // The library sees an overflow by itself; here it must only not be undefined.
        if (__builtin_mul_overflow(stride, std::max<int64_t>(shape[i], 1), &stride))
            stride = std::numeric_limits<int64_t>::max();
    }
    return tensor;
}

AttentionInputs::AttentionInputs(const Safetensors& file, const ForwardOptions& options,
                                 std::optional<foveal_dtype> dtype) {
    for (const std::string& name : options.ignored) {
        if (!file.tensors.contains(name))
            throw Failure(
                fmt::format("the file has no tensor {} to ignore; it has {}", shown_name(name), names_in(file)));
    }
    for (const TensorOption& option : tensor_options()) take(file, options, option);
    require_all_used(file, options);
    if (dtype) convert(*dtype);
}

// The tensor of the file that the option reads, if there is one.
void AttentionInputs::take(const Safetensors& file, const ForwardOptions& options, const TensorOption& option) {
    const auto flag = options.names.find(option.name);
    const bool is_named = flag != options.names.end() && flag->second;
    const std::string name = is_named ? *flag->second : option.name;
    const bool is_ignored = contains(options.ignored, name);
    if (is_named && is_ignored)
        throw UsageError(fmt::format("{} and --ignore both name {}", option.flag(), shown_name(name)));
    const auto found = file.tensors.find(name);
    if (found != file.tensors.end() && !is_ignored) return add(option, name, found->second);
    if (option.required || is_named) {
        throw Failure(fmt::format("the file has no tensor {}; it has {} ({} NAME takes another)", shown_name(name),
                                  names_in(file), option.flag()));
    }
}

void AttentionInputs::add(const TensorOption& option, const std::string& name, const StoredTensor& stored) {
    for (const ForwardTensor argument : {option.argument, option.second_argument}) {
        const Input* other = argument == nullptr ? nullptr : input_of(argument);
        if (other != nullptr)
            throw Failure(fmt::format("the file has both {} and {}", shown_name(name), shown_name(other->name)));
    }
    if (stored.shape.empty() || stored.shape.size() > FOVEAL_MAX_RANK) {
        throw Failure(fmt::format("{} has {} dimensions; 1 to {} are possible", shown_name(name), stored.shape.size(),
                                  FOVEAL_MAX_RANK));
    }
    inputs_.push_back({&option, name, dtype_of(name, stored.dtype), stored});
}

void AttentionInputs::require_all_used(const Safetensors& file, const ForwardOptions& options) const {
    if (options.ignores_others) return;
    for (const auto& [name, tensor] : file.tensors) {
        const bool used = std::any_of(inputs_.begin(), inputs_.end(),
                                      [&wanted = name](const Input& input) { return input.name == wanted; });
        if (used || contains(options.ignored, name)) continue;
        throw Failure(
            fmt::format("the tensor {} has no meaning here; known are {} (--ignore {} leaves it out, "
                        "--ignore-others all such)",
                        shown_name(name), tensor_names(), shown_name(name)));
    }
}

void AttentionInputs::convert(foveal_dtype dtype) {
    const auto is_float = [](foveal_dtype t) { return t == FOVEAL_F32 || t == FOVEAL_BF16 || t == FOVEAL_F16; };
    for (Input& input : inputs_) {
        const bool follows_q = input.option->element == Element::kOfQ ||
                               (input.option->element == Element::kOfQOrF32 && input.dtype != FOVEAL_F32);
        if (!follows_q || !is_float(input.dtype) || input.dtype == dtype) continue;
        converted_.push_back(converted(input.stored.bytes, input.dtype, dtype));
        input.stored.bytes = converted_.back();
        input.dtype = dtype;
    }
}

const AttentionInputs::Input* AttentionInputs::input_of(ForwardTensor argument) const {
    const auto found = std::find_if(inputs_.begin(), inputs_.end(), [argument](const Input& input) {
        return input.option->argument == argument || input.option->second_argument == argument;
    });
    return found == inputs_.end() ? nullptr : &*found;
}

void AttentionInputs::describe(foveal_forward_args& args) const {
    for (const Input& input : inputs_) {
        args.*input.option->argument = packed_tensor(input.dtype, input.stored.shape);
        if (input.option->second_argument != nullptr)
            args.*input.option->second_argument = args.*input.option->argument;
    }
}

void AttentionInputs::check_side(const foveal_tensor& tensor, ForwardTensor cu_seqlens, ForwardTensor seqused) const {
    const Input* sums = input_of(cu_seqlens);
    const Input* used = input_of(seqused);
    std::vector<int64_t> lengths;
    if (sums != nullptr) lengths = checked_lengths(sums->name, sums->stored, tensor.shape[0]);
    if (used == nullptr) return;
    if (sums == nullptr) lengths.assign(static_cast<size_t>(tensor.shape[0]), tensor.shape[1]);
    check_used(used->name, used->stored, lengths);
}

void AttentionInputs::check_lengths(const foveal_forward_args& args) const {
    check_side(args.q, &Args::cu_seqlens_q, &Args::seqused_q);
    check_side(args.k, &Args::cu_seqlens_k, &Args::seqused_k);
}

void AttentionInputs::place(foveal_forward_args& args) {
    for (const Input& input : inputs_) {
        const size_t element_bytes = safetensors_element_bytes(safetensors_dtype(input.dtype));
        placed_.emplace_back(args.backend, input.stored.bytes, element_bytes);
        (args.*input.option->argument).data = placed_.back().data();
        if (input.option->second_argument != nullptr)
            (args.*input.option->second_argument).data = placed_.back().data();
    }
}

}  // namespace foveal_tool
