// A plan: every decision about a problem that does not depend on where its data lie. Pure, and the same without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "problem/forward.hpp"

namespace foveal {

// Sustained rates of an H200, measured 2026-11-22 (cuBLAS bf16 8192^3 on normal data; device-to-device copy).
inline constexpr double kSustainedFlopsPerSecond = 791e12;
inline constexpr double kSustainedBytesPerSecond = 4.27e12;

// What a plan needs to know of a GPU.
struct DeviceTraits {
    int32_t sms = 132;  // an H200's and an H100's (SXM)
    int64_t l2_bytes = int64_t{50} << 20;
    double dram_bytes_per_second = 4.8e12;  // peak; an H200's
    bool operator==(const DeviceTraits&) const = default;
};

namespace sm90 {
enum class ForwardVariant : int32_t;  // sm90/tiles.hpp

// Which instantiation of the forward kernel.
struct ForwardChoice {
    int32_t tile_index = 0;  // into kForwardTiles
    ForwardVariant variant{};
    bool operator==(const ForwardChoice&) const = default;
};

// In which order its tiles go (sm90/schedule.hpp, sm90/balance.cuh).
struct OrderChoice {
    // Dense: as in TileOrder.
    int32_t section_units = 1, sections = 1;
    double imbalance = 1.0;  // load of the busiest CTA over the mean
    // Varlen: keys of one head's K and V that a section may hold, and CTAs that get neighbouring tiles together; 0:
    // none do.
    int32_t section_keys = 0, bundle = 0;
};
}  // namespace sm90

// The sm90 forward kernel's part; only meaningful if backend is sm90.
struct ForwardPlan {
    sm90::ForwardChoice choice;
    int32_t grid = 0;  // CTAs; 0: nothing to compute
    bool last_rows_first = false;
    sm90::OrderChoice order;
    // Tiles hold rows of so many query heads, as a power of two (sm90/schedule.hpp). Varlen: those of sequences that
    // have at least so many tiles less then; 0: packed tiles visit fewer K/V blocks.
    int32_t heads_log2 = 0;
    int32_t least_saved_tiles = 1;
    // A warpgroup without rows in a tile passes over it if it has at least so many K/V blocks; else it computes as if.
    int32_t passed_over_blocks = 1;
};

struct Plan {
    Problem problem;
    foveal_backend backend = FOVEAL_BACKEND_CPU;
    int32_t device = -1;
    DeviceTraits traits;
    ForwardPlan forward;
    // In place of `forward` where that copies a bias (sm90/consumer.cuh) and bias.data is not aligned to 16 bytes,
    // which only the launch knows.
    ForwardPlan unaligned_bias;
};

// Throws Error(UNSUPPORTED) as check_supported() does. device -1: a generic H200.
Plan make_plan(const Problem& problem, foveal_backend backend, int32_t device, const DeviceTraits& traits);

// Several lines, for people.
std::string describe(const Plan& plan);

}  // namespace foveal
