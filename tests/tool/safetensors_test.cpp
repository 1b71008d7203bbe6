// The safetensors reader and writer: what is written reads back, and every way in which a file can lie is an error that
// says so.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "safetensors.hpp"

namespace foveal_tool {
namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes_of(const std::string& text) {
    Bytes bytes;
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
    return bytes;
}

Bytes with_length(uint64_t length, const std::string& rest) {
    Bytes file;
    for (int i = 0; i < 8; ++i) file.push_back(static_cast<std::byte>(length >> (8 * i) & 0xFF));
    const Bytes tail = bytes_of(rest);
    file.insert(file.end(), tail.begin(), tail.end());
    return file;
}

// A file with this header and so many bytes of data.
Bytes file_of(const std::string& header, size_t data_bytes) {
    return with_length(header.size(), header + std::string(data_bytes, 'x'));
}

// What the reader complains of; "" if it accepts the file.
std::string complaint(const Bytes& file) {
    try {
        (void)read_safetensors(file);
    } catch (const SafetensorsError& error) {
        return error.what();
    }
    return "";
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
    return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}";
}

TEST(SafetensorsRead, Accepts) {
    const Bytes file = file_of("{" + entry("b", "F32", "2,1", "4,12") + R"(,"__metadata__":{"format":"pt"},)" +
                                   entry("a", "BF16", "2", "0,4") + "," + entry("empty", "I32", "0,7", "12,12") + "," +
                                   entry("scalar", "U8", "", "12,13") + "}   ",
                               13);
    const Safetensors content = read_safetensors(file);
    ASSERT_EQ(content.tensors.size(), 4u);
    EXPECT_EQ(content.metadata.at("format"), "pt");
    EXPECT_EQ(content.tensors.at("b").shape, (std::vector<int64_t>{2, 1}));
    EXPECT_EQ(content.tensors.at("b").dtype, "F32");
    EXPECT_EQ(content.tensors.at("b").bytes.data(), file.data() + file.size() - 9);
    EXPECT_EQ(content.tensors.at("b").bytes.size(), 8u);
    EXPECT_EQ(content.tensors.at("empty").bytes.size(), 0u);
    EXPECT_TRUE(content.tensors.at("scalar").shape.empty());
    EXPECT_TRUE(read_safetensors(file_of("{}", 0)).tensors.empty());
}

struct Lie {
    const char* name;
    Bytes file;
    const char* complaint;  // part of the message
};

std::vector<Lie> lies() {
    const std::string good = "{" + entry("a", "F32", "2", "0,8") + "}";
    const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets, size_t data) {
        return file_of("{" + entry("a", dtype, shape, offsets) + "}", data);
    };
    const auto two = [](const std::string& first, const std::string& second, size_t data) {
        return file_of("{" + entry("a", "U8", "4", first) + "," + entry("b", "U8", "4", second) + "}", data);
    };
    return {
        {"NoBytes", {}, "the file has 0 bytes"},
        {"SevenBytes", Bytes(7), "the file has 7 bytes"},
        {"NoHeader", with_length(0, ""), "does not begin with '{'"},
        {"HeaderLongerThanFile", with_length(good.size() + 9, good + "12345678"), "follow its length"},
        {"HeaderLengthOverflows", with_length(~uint64_t{0}, good), "at most 100000000"},
        {"HeaderOver100MB", with_length(100'000'001, good), "at most 100000000"},
        {"NotJson", file_of("{garbage", 0), "no JSON"},
        {"JsonCutOff", file_of(good.substr(0, good.size() - 1), 8), "no JSON"},
        {"TwoJsonValues", file_of(good + "{}", 8), "no JSON"},
        {"ByteOrderMark", file_of("\xEF\xBB\xBF" + good, 8), "does not begin with '{'"},
        {"LeadingBlank", file_of(" " + good, 8), "does not begin with '{'"},
        {"NulBehindJson", file_of(good + std::string("\0junk", 5), 8), "NUL"},
        {"NotUtf8", file_of("{" + entry("\xFF\xFE", "F32", "2", "0,8") + "}", 8), "no JSON"},
        {"LoneSurrogate", file_of("{" + entry("\\ud800", "F32", "2", "0,8") + "}", 8), "no JSON"},
        {"ArrayAtTop", file_of("[]", 0), "does not begin with '{'"},
        {"TensorIsNumber", file_of(R"({"a":5})", 0), "'a' must not be a number"},
        {"TensorIsNull", file_of(R"({"a":null})", 0), "'a' must not be null"},
        {"TensorIsArray", file_of(R"({"a":[]})", 0), "'a' must not be an array"},
        {"MetadataIsNoObject", file_of(R"({"__metadata__":"x"})", 0), "must not be a string"},
        {"MetadataHoldsNumber", file_of(R"({"__metadata__":{"x":1}})", 0), "must not be a number"},
        {"MetadataHoldsArray", file_of(R"({"__metadata__":{"x":["y"]}})", 0), "must not be an array"},
        {"DuplicateName", file_of("{" + entry("a", "U8", "1", "0,1") + "," + entry("a", "U8", "1", "1,2") + "}", 2),
         "stands twice"},
        {"DuplicateEscapedName",
         file_of("{" + entry("a", "U8", "1", "0,1") + "," + entry("\\u0061", "U8", "1", "1,2") + "}", 2),
         "stands twice"},
        {"DuplicateField", file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1),
         "stands twice"},
        {"DuplicateMetadata", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), "stands twice"},
        {"UnknownField", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"stride":[1]}})", 1),
         "unknown field 'stride'"},
        {"NoDtype", file_of(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), "dtype is missing"},
        {"NoShape", file_of(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1), "shape is missing"},
        {"NoOffsets", file_of(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "data_offsets is missing"},
        {"DtypeIsNumber", file_of(R"({"a":{"dtype":1,"shape":[1],"data_offsets":[0,1]}})", 1),
         "dtype must not be a number"},
        {"ShapeIsNumber", file_of(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1),
         "shape must not be a number"},
        {"ShapeNested", one("U8", "[1]", "0,1", 1), "shape must not be an array"},
        {"ShapeHoldsString", one("U8", "\"1\"", "0,1", 1), "shape must not be a string"},
        {"ShapeHoldsObject", one("U8", "{}", "0,1", 1), "shape must not be an object"},
        {"ShapeHoldsBoolean", one("U8", "true", "0,1", 1), "shape must not be a boolean"},
        {"UnknownDtype", one("F33", "2", "0,8", 8), "unknown dtype 'F33'"},
        {"EmptyDtype", one("", "2", "0,8", 8), "unknown dtype ''"},
        {"NegativeDimension", one("U8", "-1", "0,1", 1), "-1 is negative"},
        {"TwoNegativeDimensions", one("U8", "-1,-1", "0,1", 1), "-1 is negative"},
        {"FractionalDimension", one("U8", "1.5", "0,1", 1), "1.5 is no integer"},
        {"ExponentDimension", one("U8", "1e0", "0,1", 1), "1e0 is no integer"},
        {"DimensionBeyond64Bits", one("U8", "18446744073709551616", "0,1", 1), "is no integer of 64 bits"},
        {"DimensionBeyondInt64", one("U8", "9223372036854775808", "0,1", 1), "too large"},
        {"SizeOverflows", one("F32", "4294967296,4294967296", "0,0", 0), "overflows 64 bits"},
        {"SizeOverflowsToFit", one("F32", "4611686018427387905", "0,4", 4), "overflows 64 bits"},
        {"SizeTooSmall", one("F32", "2", "0,4", 4), "takes 8 bytes, but data_offsets spans 4"},
        {"SizeTooLarge", one("F32", "2", "0,12", 12), "takes 8 bytes, but data_offsets spans 12"},
        {"EmptyShapeWithBytes", one("F32", "0", "0,4", 4), "takes 0 bytes, but data_offsets spans 4"},
        {"OneOffset", one("F32", "2", "8", 8), "data_offsets has 1 entries"},
        {"ThreeOffsets", one("F32", "2", "0,8,8", 8), "data_offsets has 3 entries"},
        {"NegativeOffset", one("F32", "2", "-8,0", 8), "-8 is negative"},
        {"BeginBehindEnd", one("F32", "2", "8,0", 8), "after its end"},
        {"EndBehindData", one("F32", "2", "0,8", 7), "the file has 7 bytes of data"},
        {"BothBehindData", one("F32", "2", "8,16", 8), "the file has 8 bytes of data"},
        {"HugeOffsets", one("U8", "1", "18446744073709551614,18446744073709551615", 8), "the file has 8 bytes of data"},
        {"TrailingBytes", one("F32", "2", "0,8", 9), "1 bytes follow the last tensor"},
        {"DataWithoutTensors", file_of("{}", 3), "3 bytes follow the last tensor"},
        {"HoleAtBegin", one("F32", "2", "1,9", 9), "bytes 0 to 1"},
        {"HoleBetween", two("0,4", "5,9", 9), "bytes 4 to 5"},
        {"Overlap", two("0,4", "3,7", 7), "'b' begins at 3, inside the tensor before it"},
        {"SameBytesTwice", two("0,4", "0,4", 4), "inside the tensor before it"},
        {"DeepNesting", file_of("{\"a\":" + std::string(100'000, '['), 0), "'a' must not be an array"},
    };
}

class SafetensorsLie : public testing::TestWithParam<Lie> {};

TEST_P(SafetensorsLie, IsAClearError) {
    const std::string message = complaint(GetParam().file);
    EXPECT_NE(message.find(GetParam().complaint), std::string::npos) << "message: '" << message << "'";
    EXPECT_EQ(message.rfind("safetensors: ", 0), 0u) << message;
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsLie, testing::ValuesIn(lies()),
                         [](const auto& lie) { return std::string(lie.param.name); });

// A file as the writer makes it, with tensors of all the types that the tool knows.
struct Sample {
    std::array<float, 6> f = {1, -2, 3.5f, 0, 5, -6};
    std::array<uint16_t, 3> h = {0x3F80, 0xC000, 7};
    std::array<int32_t, 2> i = {0, -5};
    std::array<uint8_t, 3> u = {1, 2, 3};

    Safetensors content() const {
        Safetensors all;
        all.tensors["f"] = {"F32", {2, 3}, std::as_bytes(std::span(f))};
        all.tensors["h \"quoted\" \xC3\xA4"] = {"BF16", {3, 1}, std::as_bytes(std::span(h))};
        all.tensors["i"] = {"I32", {2}, std::as_bytes(std::span(i))};
        all.tensors["a"] = {"U8", {3}, std::as_bytes(std::span(u))};
        all.tensors["none"] = {"F16", {0, 5}, {}};
        all.metadata["k"] = "v";
        return all;
    }
};

Bytes serialized(const Safetensors& content) {
    std::vector<std::string> order;
    Bytes file = safetensors_header(content, order);
    for (const std::string& name : order) {
        const auto bytes = content.tensors.at(name).bytes;
        file.insert(file.end(), bytes.begin(), bytes.end());
    }
    return file;
}

void expect_same(const Safetensors& a, const Safetensors& b) {
    EXPECT_EQ(a.metadata, b.metadata);
    ASSERT_EQ(a.tensors.size(), b.tensors.size());
    for (const auto& [name, tensor] : a.tensors) {
        ASSERT_TRUE(b.tensors.contains(name)) << name;
        const StoredTensor& other = b.tensors.at(name);
        EXPECT_EQ(tensor.dtype, other.dtype);
        EXPECT_EQ(tensor.shape, other.shape);
        EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(), other.bytes.end()))
            << name;
    }
}

TEST(SafetensorsWrite, ReadsBack) {
    const Sample sample;
    const Bytes file = serialized(sample.content());
    expect_same(sample.content(), read_safetensors(file));
}

TEST(SafetensorsWrite, AlignsEveryTensorToItsElement) {
    const Sample sample;
    const Bytes file = serialized(sample.content());
    for (const auto& [name, tensor] : read_safetensors(file).tensors) {
        const auto offset = static_cast<uint64_t>(tensor.bytes.data() - file.data());
        EXPECT_EQ(tensor.bytes.empty() ? 0 : offset % safetensors_element_bytes(tensor.dtype), 0u) << name;
    }
}

TEST(SafetensorsWrite, RefusesBytesThatAreNotTheShape) {
    Sample sample;
    Safetensors content = sample.content();
    content.tensors["f"].shape = {7};
    EXPECT_THROW((void)serialized(content), SafetensorsError);
    content = sample.content();
    content.tensors["f"].dtype = "F33";
    EXPECT_THROW((void)serialized(content), SafetensorsError);
}

TEST(SafetensorsWrite, ThroughAFile) {
    const Sample sample;
    const std::filesystem::path path =
        std::filesystem::path(testing::TempDir()) / "foveal_safetensors_test.safetensors";
    {
        OutputFile file(path);
        write_safetensors(file, sample.content());
    }
    {
        const MappedFile file(path);
        expect_same(sample.content(), read_safetensors(file.bytes()));
    }
    std::filesystem::remove(path);
    EXPECT_THROW(MappedFile{path}, std::system_error);
    EXPECT_THROW(MappedFile{testing::TempDir()}, std::system_error);
    EXPECT_THROW(OutputFile{path / "in" / "no" / "directory"}, OutputError);
}

TEST(SafetensorsRead, EveryTruncationIsAnError) {
    const Bytes file = serialized(Sample().content());
    for (size_t size = 0; size < file.size(); ++size) {
        EXPECT_NE(complaint(Bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size))), "")
            << size << " bytes";
    }
}

// Whatever bytes come: content whose views lie inside the file, or a SafetensorsError.
TEST(SafetensorsRead, SurvivesMutations) {
    const Sample sample;
    const Bytes original = serialized(sample.content());
    std::mt19937 random(8);
    const std::string alphabet = "{}[]\",:0123456789-.eE\\u \xFF";
    int accepted = 0;
    for (int round = 0; round < 20000; ++round) {
        Bytes file = original;
        for (auto n = 1 + random() % 3; n > 0; --n) {
            const bool drawn = random() % 2 == 0;
            const auto value = drawn ? static_cast<std::byte>(alphabet[random() % alphabet.size()])
                                     : static_cast<std::byte>(random() & 0xFF);
            file[random() % file.size()] = value;
        }
        try {
            for (const auto& [name, tensor] : read_safetensors(file).tensors) {
                ASSERT_GE(tensor.bytes.data(), file.data()) << name;
                ASSERT_LE(tensor.bytes.data() + tensor.bytes.size(), file.data() + file.size()) << name;
            }
            ++accepted;
        } catch (const SafetensorsError&) {
            continue;
        }
    }
    EXPECT_GT(accepted, 0);
    EXPECT_LT(accepted, 20000);
}

}  // namespace
}  // namespace foveal_tool
