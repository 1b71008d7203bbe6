// Tensors drawn from a fuzzer's bytes: mostly such that they fit a problem, with a few fields spoilt afterwards.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_fuzz {

// Small in most cases; else where something may overflow or a tile ends.
inline int64_t draw_size(FuzzedDataProvider& bytes) {
    switch (bytes.ConsumeIntegralInRange<int>(0, 9)) {
        case 0:
            return bytes.PickValueInArray<int64_t>({0, 1, 63, 64, 65, 127, 128, 129, 192, 256, 512, 1000});
        case 1:
            return (int64_t{1} << bytes.ConsumeIntegralInRange<int>(0, 62)) + bytes.ConsumeIntegralInRange<int>(-1, 1);
        default:
            return bytes.ConsumeIntegralInRange<int64_t>(0, 12);
    }
}

inline int64_t draw_any(FuzzedDataProvider& bytes) {
    using Limits = std::numeric_limits<int64_t>;
    if (bytes.ConsumeIntegralInRange<int>(0, 3) == 0)
        return bytes.PickValueInArray<int64_t>(
            {Limits::min(), Limits::min() + 1, -1, Limits::max() - 1, Limits::max()});
    return bytes.ConsumeBool() ? draw_size(bytes) : bytes.ConsumeIntegral<int64_t>();
}

inline foveal_tensor draw_tensor(FuzzedDataProvider& bytes, foveal_dtype dtype, const std::vector<int64_t>& shape) {
    foveal_tensor t{};
    t.dtype = dtype;
    t.rank = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), t.shape);
    std::vector<int> order(shape.size());
    std::iota(order.begin(), order.end(), 0);
    if (order.size() > 2 && bytes.ConsumeBool()) std::swap(order[order.size() - 3], order[order.size() - 2]);
    const int64_t padding = bytes.ConsumeBool() ? 0 : bytes.ConsumeIntegralInRange<int64_t>(0, 9);
    int64_t stride = 1;
    for (size_t n = order.size(); n-- > 0;) {
        t.stride[order[n]] = stride;
        if (__builtin_mul_overflow(stride, std::max<int64_t>(shape[static_cast<size_t>(order[n])], 1), &stride) ||
            __builtin_add_overflow(stride, padding, &stride))
            stride = std::numeric_limits<int64_t>::max();
    }
    return t;
}

// Changes one field to anything.
inline void spoil(FuzzedDataProvider& bytes, foveal_tensor& t) {
    const int i = bytes.ConsumeIntegralInRange<int>(0, FOVEAL_MAX_RANK - 1);
    switch (bytes.ConsumeIntegralInRange<int>(0, 3)) {
        case 0:
            t.rank =
                bytes.ConsumeBool() ? bytes.ConsumeIntegralInRange<int32_t>(-1, 5) : bytes.ConsumeIntegral<int32_t>();
            break;
        case 1:
            t.dtype = bytes.ConsumeIntegralInRange<int32_t>(-1, 9);
            break;
        case 2:
            t.shape[i] = draw_any(bytes);
            break;
        default:
            t.stride[i] = draw_any(bytes);
    }
}

inline int64_t element_bytes(foveal_dtype dtype) {
    if (dtype == FOVEAL_I64) return 8;
    return dtype == FOVEAL_BOOL || dtype == FOVEAL_E4M3 ? 1 : dtype == FOVEAL_BF16 || dtype == FOVEAL_F16 ? 2 : 4;
}

// Bytes from a valid tensor's first to behind its last; 0 without elements.
inline int64_t span_bytes(const foveal_tensor& t) {
    int64_t last = 0;
    for (int i = 0; i < t.rank; ++i) {
        if (t.shape[i] == 0) return 0;
        if (t.shape[i] > 1) last += (t.shape[i] - 1) * t.stride[i];
    }
    return t.rank == 0 ? 0 : (last + 1) * element_bytes(t.dtype);
}

// Memory for tensors, each of its exact size, so that AddressSanitizer sees the first byte too far.
class Memory {
   public:
    // The largest span that is given memory.
    static constexpr int64_t kMaxBytes = 1 << 16;

    static bool fits(const foveal_tensor& t) { return span_bytes(t) <= kMaxBytes; }

    void attach(FuzzedDataProvider& bytes, foveal_tensor& t) {
        const auto size = static_cast<size_t>(span_bytes(t));
        if (size == 0) return;
        blocks_.emplace_back(static_cast<unsigned char*>(std::malloc(size)), &std::free);
        unsigned char* block = blocks_.back().get();
        std::fill_n(block, size, static_cast<unsigned char>(bytes.ConsumeIntegral<uint8_t>()));
        const std::vector<uint8_t> head = bytes.ConsumeBytes<uint8_t>(std::min<size_t>(size, 16));
        std::copy(head.begin(), head.end(), block);
        t.data = block;
    }

   private:
    std::vector<std::unique_ptr<unsigned char, void (*)(void*)>> blocks_;
};

}  // namespace foveal_fuzz
