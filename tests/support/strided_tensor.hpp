// A tensor of a test on either backend: values set and read as floats, any strides, and poison in all that lies between
// and around the elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "foveal/foveal.hpp"
#include "tests/support/case_data.hpp"
#include "tests/support/number_formats.hpp"
#if FOVEAL_HAS_CUDA
#include "tests/support/device_buffer.hpp"
#endif

namespace foveal_testing {

// Bytes where a backend can use them.
class BackendMemory {
   public:
    BackendMemory(foveal_backend backend, const std::vector<std::byte>& bytes) : on_host_(bytes) {
        if (backend != FOVEAL_BACKEND_SM90) return;
#if FOVEAL_HAS_CUDA
        on_device_ = DeviceBuffer(bytes);
        is_on_device_ = true;
#endif
    }

    void* data() {
#if FOVEAL_HAS_CUDA
        if (is_on_device_) return on_device_.as<void>();
#endif
        return on_host_.data();
    }

    // On the device: waits for all of its work.
    const std::vector<std::byte>& read() {
#if FOVEAL_HAS_CUDA
        if (is_on_device_) on_device_.download(on_host_.data());
#endif
        return on_host_;
    }

    void write(const std::vector<std::byte>& bytes) {
        std::memcpy(on_host_.data(), bytes.data(), bytes.size());
#if FOVEAL_HAS_CUDA
        if (is_on_device_) on_device_.upload(bytes.data());
#endif
    }

   private:
    std::vector<std::byte> on_host_;
#if FOVEAL_HAS_CUDA
    DeviceBuffer on_device_;
    bool is_on_device_ = false;
#endif
};

using Shape = std::vector<int64_t>;

inline int64_t elements_of(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

// Strides of a tensor whose dimensions lie in memory in this order, outermost first, each with so many elements of
// padding behind it.
inline Shape strides_in_order(const Shape& shape, const std::vector<size_t>& order, int64_t padding = 0) {
    Shape strides(shape.size());
    int64_t stride = 1;
    for (size_t n = order.size(); n-- > 0;) {
        strides[order[n]] = stride;
        stride *= std::max<int64_t>(shape[order[n]], 1) + padding;
    }
    return strides;
}

inline Shape packed_strides(const Shape& shape, int64_t padding = 0) {
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    return strides_in_order(shape, order, padding);
}

class StridedTensor {
   public:
    // All poison. offset: elements before the first.
    StridedTensor(foveal_backend backend, foveal_dtype dtype, const Shape& shape, const Shape& strides,
                  int64_t offset = 16)
        : dtype_(dtype), shape_(shape), strides_(strides), offset_(offset), memory_(backend, poison(span_bytes())) {}
    StridedTensor(foveal_backend backend, foveal_dtype dtype, const Shape& shape)
        : StridedTensor(backend, dtype, shape, packed_strides(shape)) {}

    foveal::Tensor view() {
        foveal::Tensor t;
        t.data = static_cast<std::byte*>(memory_.data()) + offset_ * element_bytes();
        t.dtype = dtype_;
        for (size_t i = 0; i < shape_.size(); ++i) {
            t.shape[i] = shape_[i];
            t.stride[i] = strides_[i];
        }
        t.rank = static_cast<int32_t>(shape_.size());
        return t;
    }

    // values: row-major, without gaps; rounded to the tensor's type.
    void set(const std::vector<float>& values) {
        std::vector<std::byte> bytes = poison(span_bytes());
        for (size_t i = 0; i < values.size(); ++i) store(bytes, index_of(static_cast<int64_t>(i)), values[i]);
        memory_.write(bytes);
    }

    std::vector<float> values() {
        const std::vector<std::byte>& bytes = memory_.read();
        std::vector<float> values(static_cast<size_t>(elements_of(shape_)));
        for (size_t i = 0; i < values.size(); ++i) values[i] = load(bytes, index_of(static_cast<int64_t>(i)));
        return values;
    }

    // Is there still poison wherever no element lies?
    bool surroundings_untouched() {
        std::vector<std::byte> bytes = memory_.read();
        const std::vector<std::byte> poisoned = poison(span_bytes());
        for (int64_t i = 0; i < elements_of(shape_); ++i) {
            const auto at = static_cast<std::ptrdiff_t>(index_of(i) * element_bytes());
            std::copy(poisoned.begin() + at, poisoned.begin() + at + element_bytes(), bytes.begin() + at);
        }
        return bytes == poisoned;
    }

    std::vector<std::byte> bytes() { return memory_.read(); }

   private:
    int64_t element_bytes() const {
        if (dtype_ == FOVEAL_I64) return 8;
        if (dtype_ == FOVEAL_E4M3) return 1;
        return dtype_ == FOVEAL_F32 || dtype_ == FOVEAL_I32 || dtype_ == FOVEAL_U32 ? 4 : 2;
    }

    int64_t span_bytes() const {
        int64_t last = 0;
        for (size_t i = 0; i < shape_.size(); ++i) last += (shape_[i] > 0 ? shape_[i] - 1 : 0) * strides_[i];
        return (2 * offset_ + last + 1) * element_bytes();
    }

    std::vector<std::byte> poison(int64_t bytes) const {
        if (dtype_ == FOVEAL_E4M3) return std::vector<std::byte>(static_cast<size_t>(bytes), std::byte{0x7F});
        std::vector<std::byte> all(static_cast<size_t>(bytes));
        for (size_t i = 0; i + 1 < all.size(); i += 2) std::memcpy(all.data() + i, &kPoison16, 2);
        return all;
    }

    // Place in the memory of the i-th element in row-major order.
    int64_t index_of(int64_t i) const {
        int64_t index = offset_;
        for (size_t n = shape_.size(); n-- > 0; i /= shape_[n]) index += i % shape_[n] * strides_[n];
        return index;
    }

    void store(std::vector<std::byte>& bytes, int64_t index, float value) const {
        std::byte* to = bytes.data() + index * element_bytes();
        if (dtype_ == FOVEAL_F32) {
            std::memcpy(to, &value, 4);
        } else if (dtype_ == FOVEAL_I32 || dtype_ == FOVEAL_U32 || dtype_ == FOVEAL_I64) {
            const auto integer = static_cast<int64_t>(value);
            std::memcpy(to, &integer, static_cast<size_t>(element_bytes()));  // little-endian
        } else if (dtype_ == FOVEAL_E4M3) {
            *to = std::byte{float_to_e4m3(value)};
        } else {
            const uint16_t bits = dtype_ == FOVEAL_BF16 ? float_to_bf16(value) : float_to_f16(value);
            std::memcpy(to, &bits, 2);
        }
    }

    float load(const std::vector<std::byte>& bytes, int64_t index) const {
        const std::byte* from = bytes.data() + index * element_bytes();
        if (dtype_ == FOVEAL_F32) {
            float value;
            std::memcpy(&value, from, 4);
            return value;
        }
        if (dtype_ == FOVEAL_E4M3) return e4m3_to_float(static_cast<uint8_t>(*from));
        uint16_t bits;
        std::memcpy(&bits, from, 2);
        return dtype_ == FOVEAL_BF16 ? bf16_to_float(bits) : f16_to_float(bits);
    }

    foveal_dtype dtype_;
    Shape shape_, strides_;
    int64_t offset_;
    BackendMemory memory_;
};

}  // namespace foveal_testing
