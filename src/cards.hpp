// What a GPU's memory and tensor cores sustain, once for the library, the tool and (through the tool) Python.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace foveal {

// One row a card. A rate that nobody has measured is absent: whoever derives a bound from it says so.
struct Card {
    const char* name;  // as the driver gives it, whole: an NVL, a PCIe card or a MIG slice of the same chip is another
    int32_t sms;
    int64_t l2_bytes;
    double dram_bytes_per_second;                           // peak, by the data sheet
    std::optional<double> sustained_flops_per_second;       // 16-bit products
    std::optional<double> sustained_copy_bytes_per_second;  // read and written bytes together
    std::optional<double> sustained_read_bytes_per_second;
    double link_bytes_per_second;  // that NCCL sends to a peer while it receives as many; unmeasured: NVLink's own
};

inline constexpr Card kCards[] = {
    // H200 SXM. Peak: NVIDIA's data sheet. Sustained, measured by us 2026-11-22: cuBLAS's bf16 8192^3 product on normal
    // data, a copy from device to device, and a kernel that only reads. The link: 1 GiB each way at once between two of
    // a host, 2026-11-29 (bench/parallel.py); its data sheet says 450e9.
    {"NVIDIA H200", 132, int64_t{50} << 20, 4.8e12, 791e12, 4.27e12, 4.58e12, 360e9},
    // H100 SXM. Peak: NVIDIA's data sheet. Sustained, measured by us 2026-11-28 on two cards (driver 580.159.04,
    // PyTorch 2.11): the same product, 694 and 689 TFLOP/s, and copy, 3.02 TB/s. Reading alone has not been measured,
    // nor the link.
    {"NVIDIA H100 80GB HBM3", 132, int64_t{50} << 20, 3.35e12, 690e12, 3.02e12, {}, 450e9},
};

// The card of this name; NULL for one that the table does not have.
constexpr const Card* find_card(std::string_view device_name) {
    for (const Card& card : kCards)
        if (device_name == card.name) return &card;
    return nullptr;
}

}  // namespace foveal
