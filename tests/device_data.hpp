// What the host and the device form of a case's data share.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "case_data.hpp"

namespace foveal_testing {

foveal_tensor& tensor_of(foveal_forward_args& args, TensorId id);
std::vector<int32_t> cumulated(const std::vector<int64_t>& lengths);  // [b] -> [b + 1]
std::vector<int32_t> narrowed(const std::optional<std::vector<int64_t>>& lengths);

// CaseData::read and scan over a buffer in host memory.
void read_host(const Case& c, const TensorLayout& layout, TensorId id, const std::byte* buffer, int64_t sequence,
               int64_t head, int64_t first, int64_t count, float* to);
OutputScan scan_host(foveal_dtype dtype, const std::vector<std::byte>& buffer);

// Memory of the current CUDA device.
std::unique_ptr<CaseData> make_device_data(const Case& c);

}  // namespace foveal_testing
