// What a launch of the forward over e4m3 hands to its kernel, besides the tensor maps.
#pragma once

#include <cstdint>

#include "sm90/forward/params.hpp"

namespace foveal::sm90 {

// [b, h_k], or null: 1.
struct DescaleOfHead {
    const float* data;
    int64_t batch_stride, head_stride;
    FOVEAL_HOST_DEVICE float of(int32_t sequence, int32_t head_k) const {
        return data == nullptr ? 1.0f : data[sequence * batch_stride + head_k * head_stride];
    }
};

struct E4m3Params {
    ForwardParams forward;
    DescaleOfHead q, k, v;
};

}  // namespace foveal::sm90
