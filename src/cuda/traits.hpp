// What plans need to know of a GPU. Plain C++: planning needs no CUDA.
#pragma once

#include <cstdint>

#include "cards.hpp"

namespace foveal::cuda {

// What a plan without a device is made for: an H200.
inline constexpr const Card& kGenericCard = kCards[0];

struct DeviceTraits {
    const Card* card = &kGenericCard;  // with the rates measured on it; null: a GPU that cards.hpp does not know
    int32_t compute_major = 9, compute_minor = 0;
    int32_t sms = kGenericCard.sms;
    int64_t l2_bytes = kGenericCard.l2_bytes;
    double dram_bytes_per_second = kGenericCard.dram_bytes_per_second;  // peak
};

}  // namespace foveal::cuda
