// Reader and writer of the safetensors format (https://huggingface.co/docs/safetensors): 8 bytes of header length,
// little endian; a JSON header {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {...}}; the tensors'
// bytes. A file is read as hostile: whatever its header says is checked against the bytes that are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "output_file.hpp"

namespace foveal_tool {

// Not a safetensors file, or one whose header lies; the message says where.
class SafetensorsError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

struct StoredTensor {
    std::string dtype;                 // as the format spells it: "BF16", "F16", "F32", "I32", ...
    std::vector<int64_t> shape;        // row-major, no padding
    std::span<const std::byte> bytes;  // a view; in a file that was read it may have any alignment
};

struct Safetensors {
    std::map<std::string, StoredTensor> tensors;
    std::map<std::string, std::string> metadata;
};

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// A name from a file for a message: without control characters, and not of any length.
std::string shown_name(const std::string& name);

// Bytes of an element, 0 for a dtype that the format does not know.
uint64_t safetensors_element_bytes(const std::string& dtype);

// The tensors view `file`, which must outlive them. Throws SafetensorsError.
Safetensors read_safetensors(std::span<const std::byte> file);

// Everything that precedes the tensors' bytes, padded so that these begin at a multiple of 8 bytes.
// order: the names in the order in which their bytes must follow. Throws SafetensorsError where shape, dtype and bytes
// disagree.
std::vector<std::byte> safetensors_header(const Safetensors& content, std::vector<std::string>& order);

// Throws SafetensorsError, OutputError.
void write_safetensors(OutputFile& file, const Safetensors& content);

// A file's bytes, mapped read-only into memory. Throws std::system_error.
class MappedFile {
   public:
    explicit MappedFile(const std::filesystem::path& path);
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    ~MappedFile();

    std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

   private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace foveal_tool
