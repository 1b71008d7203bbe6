// Fuzzes the tool's safetensors reader: content whose views lie inside the file, or a SafetensorsError. What it accepts
// is written and read back.
#include "safetensors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace {

using namespace foveal_tool;

void require(bool condition) {
    if (!condition) std::abort();
}

void check_round_trip(const Safetensors& content) {
    std::vector<std::string> order;
    std::vector<std::byte> file = safetensors_header(content, order);
    for (const std::string& name : order) {
        const std::span<const std::byte> bytes = content.tensors.at(name).bytes;
        file.insert(file.end(), bytes.begin(), bytes.end());
    }
    const Safetensors again = read_safetensors(file);
    require(again.metadata == content.metadata && again.tensors.size() == content.tensors.size());
    for (const auto& [name, tensor] : content.tensors) {
        const StoredTensor& other = again.tensors.at(name);
        require(other.dtype == tensor.dtype && other.shape == tensor.shape);
        require(std::equal(other.bytes.begin(), other.bytes.end(), tensor.bytes.begin(), tensor.bytes.end()));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::span file(reinterpret_cast<const std::byte*>(data), size);
    Safetensors content;
    try {
        content = read_safetensors(file);
    } catch (const SafetensorsError&) {
        return 0;
    }
    for (const auto& [name, tensor] : content.tensors)
        require(tensor.bytes.data() >= file.data() &&
                tensor.bytes.data() + tensor.bytes.size() <= file.data() + file.size());
    check_round_trip(content);
    return 0;
}
