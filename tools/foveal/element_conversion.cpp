#include "element_conversion.hpp"

#include <cstdint>
#include <cstring>

#include "tests/support/number_formats.hpp"

namespace foveal_tool {
namespace {

size_t width_of(foveal_dtype dtype) { return dtype == FOVEAL_F32 ? sizeof(float) : sizeof(uint16_t); }

// The file may have put it at any address.
template <class Bits>
Bits load(const std::byte* at) {
    Bits bits;
    std::memcpy(&bits, at, sizeof bits);
    return bits;
}

float value_at(const std::byte* at, foveal_dtype dtype) {
    if (dtype == FOVEAL_BF16) return foveal_testing::bf16_to_float(load<uint16_t>(at));
    if (dtype == FOVEAL_F16) return foveal_testing::f16_to_float(load<uint16_t>(at));
    return load<float>(at);
}

void store(std::byte* at, foveal_dtype dtype, float value) {
    if (dtype == FOVEAL_F32) {
        std::memcpy(at, &value, sizeof value);
        return;
    }
    const uint16_t bits =
        dtype == FOVEAL_BF16 ? foveal_testing::float_to_bf16(value) : foveal_testing::float_to_f16(value);
    std::memcpy(at, &bits, sizeof bits);
}

}  // namespace

std::vector<std::byte> converted(std::span<const std::byte> values, foveal_dtype from, foveal_dtype to) {
    const size_t from_width = width_of(from), to_width = width_of(to);
    const size_t count = values.size() / from_width;
    std::vector<std::byte> result(count * to_width);
    for (size_t i = 0; i < count; ++i)
        store(result.data() + i * to_width, to, value_at(values.data() + i * from_width, from));
    return result;
}

}  // namespace foveal_tool
