// What the host and the device form of a case's data share.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "tests/support/case_data.hpp"

namespace foveal_testing {

foveal_tensor& tensor_of(foveal_forward_args& args, TensorId id);

// Which dimensions of the tensor's shape count sequences (of the dense form), rows and heads; -1: none does.
struct Axes {
    int sequence, row, head;
};
Axes axes_of(const Case& c, TensorId id);
int64_t channels_of(const Case& c, TensorId id);
// The distance between neighbours along a dimension; 0 along one of size 1, which all share, and where there is none.
int64_t stride_along(const foveal_tensor& view, int dimension);
// Between neighbouring channels: 1, or 0 of a bias or a mask that all keys share.
int64_t channel_stride(const foveal_tensor& view, TensorId id);

// Queries and keys that bias and mask have values for, 1 where all share it; beyond lies poison. `of` counts their
// first dimension.
struct ScoreExtent {
    int64_t queries, keys;
};
ScoreExtent score_extent(const Case& c, const ScoreMatrix& matrix, int64_t of);

// Slopes and sinks: few enough for the host to make them in the tensor's buffer.
void fill_head_values(const Case& c, TensorId id, const TensorLayout& layout, std::byte* buffer);
std::vector<int32_t> cumulated(const std::vector<int64_t>& lengths);  // [b] -> [b + 1]
std::vector<int32_t> narrowed(const std::optional<std::vector<int64_t>>& lengths);

// The arguments of 32-bit numbers (lengths, pages, bits) that the case has, row-major.
using TensorArgument = foveal_tensor foveal_forward_args::*;  // named: nvcc's own output has a warning otherwise
struct NumbersArgument {
    TensorArgument tensor;
    std::vector<int32_t> values;
};
std::vector<NumbersArgument> numbers_of(const Case& c);

// CaseData::read and scan over a buffer in host memory.
void read_host(const Case& c, const TensorLayout& layout, TensorId id, const std::byte* buffer, int64_t sequence,
               int64_t head, int64_t first, int64_t count, float* to);
OutputScan scan_host(foveal_dtype dtype, const std::vector<std::byte>& buffer);

// Memory of the current CUDA device.
std::unique_ptr<CaseData> make_device_data(const Case& c);

}  // namespace foveal_testing
