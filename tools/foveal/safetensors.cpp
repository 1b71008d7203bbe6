#include "safetensors.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

namespace foveal_tool {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr const char* kMetadataName = "__metadata__";

// What a hostile file says may be long, or steer the terminal that it is shown on.
std::string shortened(const std::string& text) {
    constexpr size_t kMaxBytes = 120;
    std::string shown;
    for (const char c : text) {
        if (shown.size() >= kMaxBytes) return shown + "...";
        const auto byte = static_cast<unsigned char>(c);
        shown += byte < 0x20 || byte == 0x7F ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
    }
    return shown;
}

std::string shape_text(const std::vector<uint64_t>& shape) {
    constexpr size_t kMaxDimensions = 8;
    const bool all = shape.size() <= kMaxDimensions;
    return fmt::format("[{}{}]", fmt::join(std::span(shape).first(all ? shape.size() : kMaxDimensions), ", "),
                       all ? "" : ", ...");
}

[[noreturn]] void refuse(const std::string& message) { throw SafetensorsError("safetensors: " + message); }

// One entry of the header, as it is written there.
struct Entry {
    std::string name;
    std::optional<std::string> dtype;
    std::optional<std::vector<uint64_t>> shape;
    std::optional<std::vector<uint64_t>> offsets;
};

// Takes the header's JSON event by event. A document tree would hide duplicate keys, and a header of 100 MB of brackets
// would fill the memory; here whatever has not the format's form ends the parse.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
   public:
    std::vector<Entry> entries;
    std::map<std::string, std::string> metadata;
    std::string error;

    bool null() override { return unexpected("null"); }
    bool boolean(bool) override { return unexpected("a boolean"); }
    bool number_integer(number_integer_t value) override {
        return list_ == nullptr ? unexpected("a number") : fail(fmt::format("{}: {} is negative", place(), value));
    }
    bool number_float(number_float_t, const string_t& text) override {
        return list_ == nullptr ? unexpected("a number")
                                : fail(fmt::format("{}: {} is no integer of 64 bits", place(), shortened(text)));
    }
    bool binary(binary_t&) override { return unexpected("binary data"); }

    bool number_unsigned(number_unsigned_t value) override {
        if (list_ == nullptr) return unexpected("a number");
        list_->push_back(value);
        return true;
    }

    bool string(string_t& value) override {
        if (level_ == 2 && in_metadata_) {
            metadata[field_] = value;
            return true;
        }
        if (level_ != 2 || list_ != nullptr || field_ != "dtype") return unexpected("a string");
        entries.back().dtype = value;
        return true;
    }

    bool start_object(size_t) override {
        if (list_ != nullptr || level_ == 2) return unexpected("an object");
        if (++level_ == 2 && !in_metadata_) entries.push_back({name_, {}, {}, {}});
        return true;
    }

    bool end_object() override {
        if (level_ == 2) fields_.clear();
        --level_;
        return true;
    }

    bool key(string_t& text) override { return level_ == 1 ? begin_name(text) : begin_field(text); }

    bool start_array(size_t) override {
        if (level_ != 2 || in_metadata_ || list_ != nullptr) return unexpected("an array");
        Entry& entry = entries.back();
        if (field_ == "shape") list_ = &entry.shape.emplace();
        if (field_ == "data_offsets") list_ = &entry.offsets.emplace();
        return list_ != nullptr || unexpected("an array");
    }

    bool end_array() override {
        list_ = nullptr;
        return true;
    }

    bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& why) override {
        return fail(fmt::format("the header is no JSON at its byte {}: {}", position, shortened(why.what())));
    }

   private:
    bool begin_name(const std::string& text) {
        if (!names_.insert(text).second)
            return fail(fmt::format("the name {} stands twice in the header", shown_name(text)));
        name_ = text;
        in_metadata_ = text == kMetadataName;
        return true;
    }

    bool begin_field(const std::string& text) {
        field_ = text;
        if (!fields_.insert(text).second)
            return fail(fmt::format("{}: {} stands twice", shown_name(name_), shown_name(text)));
        if (in_metadata_ || text == "dtype" || text == "shape" || text == "data_offsets") return true;
        return fail(fmt::format("{}: unknown field {}", shown_name(name_), shown_name(text)));
    }

    std::string place() const {
        if (level_ == 0) return "the header";
        return level_ == 1 ? shown_name(name_) : fmt::format("{}: {}", shown_name(name_), shortened(field_));
    }

    bool unexpected(const char* what) { return fail(fmt::format("{} must not be {}", place(), what)); }

    bool fail(std::string message) {
        error = std::move(message);
        return false;
    }

    int level_ = 0;  // 0: outside; 1: among the names; 2: inside a tensor's entry or the metadata
    bool in_metadata_ = false;
    std::string name_, field_;
    std::set<std::string> names_, fields_;
    std::vector<uint64_t>* list_ = nullptr;  // of the entry, while inside an array
};

uint64_t read_length(std::span<const std::byte> file) {
    if (file.size() < kLengthBytes) {
        refuse(fmt::format("the file has {} bytes; the header's length alone takes {}", file.size(), kLengthBytes));
    }
    uint64_t length = 0;
    for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | std::to_integer<uint64_t>(file[i]);
    if (length > kMaxSafetensorsHeaderBytes) {
        refuse(fmt::format("the header is said to have {} bytes; at most {} are allowed", length,
                           kMaxSafetensorsHeaderBytes));
    }
    if (length > file.size() - kLengthBytes) {
        refuse(fmt::format("the header is said to have {} bytes, but only {} follow its length", length,
                           file.size() - kLengthBytes));
    }
    return length;
}

HeaderHandler parse_header(std::span<const std::byte> header) {
    const char* text = reinterpret_cast<const char*>(header.data());
    if (header.empty() || *text != '{') refuse("the header does not begin with '{'");
    // The JSON reader would take a NUL for the end of its input, and what follows it for nothing.
    if (std::find(header.begin(), header.end(), std::byte{0}) != header.end()) refuse("the header contains a NUL byte");
    HeaderHandler handler;
    if (!nlohmann::json::sax_parse(text, text + header.size(), &handler)) refuse(handler.error);
    return handler;
}

// Bytes of a tensor of this shape, or nothing where 64 bits cannot hold them.
std::optional<uint64_t> tensor_bytes(uint64_t element_bytes, const std::vector<uint64_t>& shape) {
    // A factor of 0 makes the product 0 whatever stands beside it.
    if (std::find(shape.begin(), shape.end(), uint64_t{0}) != shape.end()) return 0;
    uint64_t bytes = element_bytes;
    for (const uint64_t n : shape) {
        if (__builtin_mul_overflow(bytes, n, &bytes)) return std::nullopt;
    }
    return bytes;
}

void check_entry(const Entry& entry, uint64_t data_bytes) {
    const auto wrong = [&entry](const std::string& why) { refuse(fmt::format("{}: {}", shown_name(entry.name), why)); };
    if (!entry.dtype) wrong("dtype is missing");
    if (!entry.shape) wrong("shape is missing");
    if (!entry.offsets) wrong("data_offsets is missing");
    const uint64_t element_bytes = safetensors_element_bytes(*entry.dtype);
    if (element_bytes == 0) wrong(fmt::format("unknown dtype {}", shown_name(*entry.dtype)));
    for (const uint64_t n : *entry.shape) {
        if (n > uint64_t{std::numeric_limits<int64_t>::max()}) wrong(fmt::format("a dimension of {} is too large", n));
    }
    if (entry.offsets->size() != 2) wrong(fmt::format("data_offsets has {} entries; it has 2", entry.offsets->size()));
    const uint64_t begin = entry.offsets->front(), end = entry.offsets->back();
    if (begin > end) wrong(fmt::format("data_offsets begins at {}, after its end {}", begin, end));
    if (end > data_bytes)
        wrong(fmt::format("data_offsets ends at {}, but the file has {} bytes of data", end, data_bytes));
    const std::optional<uint64_t> bytes = tensor_bytes(element_bytes, *entry.shape);
    if (!bytes) wrong(fmt::format("the size of shape {} overflows 64 bits", shape_text(*entry.shape)));
    if (*bytes != end - begin) {
        wrong(fmt::format("shape {} of {} takes {} bytes, but data_offsets spans {}", shape_text(*entry.shape),
                          *entry.dtype, *bytes, end - begin));
    }
}

// The tensors tile the data: no hole, no overlap, nothing behind the last one.
void check_coverage(const std::vector<Entry>& entries, uint64_t data_bytes) {
    std::vector<const Entry*> order;
    for (const Entry& entry : entries) order.push_back(&entry);
    std::sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) { return *a->offsets < *b->offsets; });
    uint64_t reached = 0;
    for (const Entry* entry : order) {
        const uint64_t begin = entry->offsets->front();
        if (begin < reached)
            refuse(fmt::format("{} begins at {}, inside the tensor before it", shown_name(entry->name), begin));
        if (begin > reached) refuse(fmt::format("bytes {} to {} of the data belong to no tensor", reached, begin));
        reached = entry->offsets->back();
    }
    if (reached < data_bytes) {
        refuse(fmt::format("{} bytes follow the last tensor and belong to none", data_bytes - reached));
    }
}

uint64_t checked_bytes(const std::string& name, const StoredTensor& tensor) {
    const std::vector<uint64_t> shape(tensor.shape.begin(), tensor.shape.end());
    const std::optional<uint64_t> bytes = tensor_bytes(safetensors_element_bytes(tensor.dtype), shape);
    if (!bytes || *bytes != tensor.bytes.size() || safetensors_element_bytes(tensor.dtype) == 0) {
        refuse(fmt::format("{}: {} bytes are no {} of shape {}", shown_name(name), tensor.bytes.size(),
                           shortened(tensor.dtype), shape_text(shape)));
    }
    return *bytes;
}

}  // namespace

std::string shown_name(const std::string& name) { return "'" + shortened(name) + "'"; }

uint64_t safetensors_element_bytes(const std::string& dtype) {
    static const std::map<std::string, uint64_t> bytes = {
        {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
        {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
        {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8},     {"C64", 8},
    };
    const auto found = bytes.find(dtype);
    return found == bytes.end() ? 0 : found->second;
}

Safetensors read_safetensors(std::span<const std::byte> file) {
    const uint64_t header_bytes = read_length(file);
    const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);
    HeaderHandler header = parse_header(file.subspan(kLengthBytes, header_bytes));
    for (const Entry& entry : header.entries) check_entry(entry, data.size());
    check_coverage(header.entries, data.size());

    Safetensors content;
    content.metadata = std::move(header.metadata);
    for (const Entry& entry : header.entries) {
        const uint64_t begin = entry.offsets->front(), end = entry.offsets->back();
        content.tensors[entry.name] = {
            *entry.dtype, {entry.shape->begin(), entry.shape->end()}, data.subspan(begin, end - begin)};
    }
    return content;
}

std::vector<std::byte> safetensors_header(const Safetensors& content, std::vector<std::string>& order) {
    // Wide elements first: every tensor is then aligned to its element.
    order.clear();
    for (const auto& [name, tensor] : content.tensors) order.push_back(name);
    std::stable_sort(order.begin(), order.end(), [&content](const std::string& a, const std::string& b) {
        const auto width = [&content](const std::string& name) {
            return safetensors_element_bytes(content.tensors.at(name).dtype);
        };
        return width(a) > width(b);
    });
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!content.metadata.empty()) header[kMetadataName] = content.metadata;
    uint64_t reached = 0;
    for (const std::string& name : order) {
        const StoredTensor& tensor = content.tensors.at(name);
        const uint64_t end = reached + checked_bytes(name, tensor);
        header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {reached, end}}};
        reached = end;
    }
    std::string text = header.dump();
    text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
    std::vector<std::byte> bytes;
    for (size_t i = 0; i < kLengthBytes; ++i) bytes.push_back(static_cast<std::byte>(text.size() >> (8 * i) & 0xFF));
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
    return bytes;
}

void write_safetensors(OutputFile& file, const Safetensors& content) {
    std::vector<std::string> order;
    const std::vector<std::byte> header = safetensors_header(content, order);
    std::vector<OutputFile::Bytes> pieces = {header};
    for (const std::string& name : order) pieces.push_back(content.tensors.at(name).bytes);
    file.write(pieces);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
    const auto fail = [&path](const char* what) {
        throw std::system_error(errno, std::generic_category(), fmt::format("cannot {} '{}'", what, path.string()));
    };
    const int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // a FIFO is refused, not waited for
    if (file < 0) fail("open");
    struct stat status {};
    const bool is_known = fstat(file, &status) == 0, is_regular = is_known && S_ISREG(status.st_mode);
    if (is_regular) {
        size_ = static_cast<size_t>(status.st_size);
        if (size_ > 0) data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    } else {
        if (is_known) errno = S_ISDIR(status.st_mode) ? EISDIR : ESPIPE;
        data_ = MAP_FAILED;
    }
    const int error = errno;
    close(file);
    errno = error;
    if (data_ == MAP_FAILED) fail(error == ESPIPE ? "map what is no file," : "read");
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace foveal_tool
