#include "attention_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "commands.hpp"

namespace foveal_tool {
namespace {

// Of the format, of foveal.h.
constexpr std::array<std::pair<const char*, foveal_dtype>, 4> kDtypes = {
    {{"F32", FOVEAL_F32}, {"BF16", FOVEAL_BF16}, {"F16", FOVEAL_F16}, {"I32", FOVEAL_I32}}};

foveal_dtype dtype_of(const std::string& name, const std::string& dtype) {
    for (const auto& [text, value] : kDtypes) {
        if (dtype == text) return value;
    }
    throw Failure(fmt::format("'{}' is {}; q, k and v may be BF16, F16 or F32, lengths I32", name, dtype));
}

void require_names(const Safetensors& file) {
    for (const char* name : {"q", "k", "v"}) {
        if (!file.tensors.contains(name)) throw Failure(fmt::format("the file has no tensor '{}'", name));
    }
    if (!file.tensors.contains("cu_seqlens")) return;
    for (const char* name : {"cu_seqlens_q", "cu_seqlens_k"}) {
        if (file.tensors.contains(name)) throw Failure(fmt::format("the file has both 'cu_seqlens' and '{}'", name));
    }
}

// Shapes and types of the inputs, from the file; no data pointers.
std::vector<int32_t> integers(const StoredTensor& stored) {
    std::vector<int32_t> values(stored.bytes.size() / sizeof(int32_t));
    if (!values.empty()) std::memcpy(values.data(), stored.bytes.data(), stored.bytes.size());
    return values;
}

// Returns the length of each sequence.
std::vector<int64_t> checked_lengths(const std::string& name, const StoredTensor& stored, int64_t total) {
    const std::vector<int32_t> sums = integers(stored);
    if (sums.front() != 0) throw Failure(fmt::format("'{}' begins with {}; it must begin with 0", name, sums.front()));
    if (sums.back() != total)
        throw Failure(fmt::format("'{}' ends with {}, but there are {} rows", name, sums.back(), total));
    std::vector<int64_t> lengths;
    for (size_t i = 1; i < sums.size(); ++i) {
        if (sums[i] < sums[i - 1]) {
            throw Failure(
                fmt::format("'{}' falls from {} to {} at entry {}; it must ascend", name, sums[i - 1], sums[i], i));
        }
        lengths.push_back(int64_t{sums[i]} - sums[i - 1]);
    }
    return lengths;
}

void check_used(const std::string& name, const StoredTensor& stored, const std::vector<int64_t>& lengths) {
    const std::vector<int32_t> used = integers(stored);
    for (size_t i = 0; i < used.size(); ++i) {
        if (used[i] < 0 || used[i] > lengths[i]) {
            throw Failure(
                fmt::format("'{}' is {} at entry {}; the sequence has {} rows", name, used[i], i, lengths[i]));
        }
    }
}

// side: "q" or "k". The shapes have been validated.
void check_side(const Safetensors& file, const foveal_tensor& tensor, const std::string& side) {
    const bool varlen = tensor.rank == 3;
    const std::string cu_name = file.tensors.contains("cu_seqlens") ? "cu_seqlens" : "cu_seqlens_" + side;
    const std::vector<int64_t> lengths =
        varlen ? checked_lengths(cu_name, file.tensors.at(cu_name), tensor.shape[0])
               : std::vector<int64_t>(static_cast<size_t>(tensor.shape[0]), tensor.shape[1]);
    const auto used = file.tensors.find("seqused_" + side);
    if (used != file.tensors.end()) check_used(used->first, used->second, lengths);
}

}  // namespace

std::string safetensors_dtype(foveal_dtype dtype) {
    for (const auto& [text, value] : kDtypes) {
        if (dtype == value) return text;
    }
    return "?";
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

foveal_tensor* argument_named(foveal_forward_args& args, const std::string& name) {
    if (name == "q") return &args.q;
    if (name == "k") return &args.k;
    if (name == "v") return &args.v;
    if (name == "cu_seqlens_q" || name == "cu_seqlens") return &args.cu_seqlens_q;
    if (name == "cu_seqlens_k") return &args.cu_seqlens_k;
    if (name == "seqused_q") return &args.seqused_q;
    if (name == "seqused_k") return &args.seqused_k;
    return nullptr;
}

void use_lengths_for_both(const Safetensors& file, foveal_forward_args& args) {
    if (file.tensors.contains("cu_seqlens")) args.cu_seqlens_k = args.cu_seqlens_q;
}

void describe_inputs(const Safetensors& file, foveal_forward_args& args) {
    require_names(file);
    for (const auto& [name, stored] : file.tensors) {
        foveal_tensor* argument = argument_named(args, name);
        if (argument == nullptr) {
            throw Failure(
                fmt::format("the tensor '{}' has no meaning here; known are q, k, v, cu_seqlens, cu_seqlens_q, "
                            "cu_seqlens_k, seqused_q, seqused_k",
                            name));
        }
        if (stored.shape.empty() || stored.shape.size() > FOVEAL_MAX_RANK) {
            throw Failure(fmt::format("'{}' has {} dimensions; 1 to {} are possible", name, stored.shape.size(),
                                      FOVEAL_MAX_RANK));
        }
        *argument = packed_tensor(dtype_of(name, stored.dtype), stored.shape);
    }
    use_lengths_for_both(file, args);
}

void check_sequence_lengths(const Safetensors& file, const foveal_forward_args& args) {
    check_side(file, args.q, "q");
    check_side(file, args.k, "k");
}

}  // namespace foveal_tool
