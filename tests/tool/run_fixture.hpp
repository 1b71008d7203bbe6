// Files for foveal run, and what it made of them.
#pragma once

#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "output_file.hpp"
#include "safetensors.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/tool/tool_fixture.hpp"

namespace foveal_testing {

using foveal_tool::Safetensors;
using foveal_tool::StoredTensor;

inline void write_file(const std::string& path, const Safetensors& content) {
    foveal_tool::OutputFile file(path);
    foveal_tool::write_safetensors(file, content);
}

template <class T>
StoredTensor stored(const std::string& dtype, std::vector<int64_t> shape, const std::vector<T>& values) {
    return {dtype, std::move(shape), std::as_bytes(std::span(values))};
}

// A file that was written by the tool; the tensors are views of it.
class ReadBack {
   public:
    explicit ReadBack(const std::string& path) : file_(path), content_(foveal_tool::read_safetensors(file_.bytes())) {}

    const StoredTensor& operator[](const std::string& name) const { return content_.tensors.at(name); }
    size_t size() const { return content_.tensors.size(); }

   private:
    foveal_tool::MappedFile file_;
    Safetensors content_;
};

inline std::vector<double> values_of(const StoredTensor& tensor) {
    std::vector<double> values;
    const size_t width = tensor.dtype == "F32" ? 4 : 2;
    for (size_t i = 0; i < tensor.bytes.size(); i += width) {
        uint32_t bits = 0;
        std::memcpy(&bits, tensor.bytes.data() + i, width);
        float value = tensor.dtype == "F16" ? f16_to_float(static_cast<uint16_t>(bits))
                                            : bf16_to_float(static_cast<uint16_t>(bits));
        if (width == 4) std::memcpy(&value, &bits, 4);
        values.push_back(double{value});
    }
    return values;
}

}  // namespace foveal_testing
