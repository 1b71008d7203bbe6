// The inputs of attention in a safetensors file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "forward_options.hpp"
#include "safetensors.hpp"
#include "tensor_memory.hpp"

namespace foveal_tool {

// A type of elements as the format spells it, "F32", or as command lines do, "f32".
std::string safetensors_dtype(foveal_dtype dtype);
foveal_dtype element_type_named(const std::string& name);
inline const std::vector<std::string> kElementTypes = {"f32", "bf16", "f16"};

// A tensor of this shape without padding; data is NULL.
foveal_tensor packed_tensor(foveal_dtype dtype, const std::vector<int64_t>& shape);

class AttentionInputs {
   public:
    // Finds the tensors; those of q's type are rounded to `dtype` where it is given. The file must live as long. Throws
    // Failure where a tensor is missing, or where one would be neither read nor said to be ignored.
    AttentionInputs(const Safetensors& file, const ForwardOptions& options, std::optional<foveal_dtype> dtype);

    // Shapes and types into args; no data pointers. Whether they fit together the library judges.
    void describe(foveal_forward_args& args) const;

    // A kernel trusts what stands in cu_seqlens and seqused; a file is not to be trusted. args: described, and accepted
    // by foveal_supports(). Throws Failure.
    void check_lengths(const foveal_forward_args& args) const;

    // Puts them where the backend wants them, and their addresses into args.
    void place(foveal_forward_args& args);

   private:
    struct Input {
        const TensorOption* option;
        std::string name;  // in the file
        foveal_dtype dtype;
        StoredTensor stored;
    };

    void take(const Safetensors& file, const ForwardOptions& options, const TensorOption& option);
    void add(const TensorOption& option, const std::string& name, const StoredTensor& stored);
    void require_all_used(const Safetensors& file, const ForwardOptions& options) const;
    void convert(foveal_dtype dtype);
    const Input* input_of(ForwardTensor argument) const;
    void check_side(const foveal_tensor& tensor, ForwardTensor cu_seqlens, ForwardTensor seqused) const;

    std::vector<Input> inputs_;
    std::vector<std::vector<std::byte>> converted_;
    std::vector<TensorMemory> placed_;
};

}  // namespace foveal_tool
