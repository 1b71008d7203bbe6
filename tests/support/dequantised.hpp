// The problem of a case in e4m3 with dequantised tensors in place of its own, in host memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/case_data.hpp"
#include "tests/support/case_pages.hpp"
#include "tests/support/number_formats.hpp"

namespace foveal_testing {

// Where the first channel of a row lies, in elements from the view's first.
inline int64_t row_offset(const Case& c, const foveal_tensor& t, TensorId id, int64_t sequence, int64_t head,
                          int64_t row) {
    const bool of_q = id == TensorId::kQ;
    if (!of_q && c.page_size > 0)
        return page_at(c, sequence, row / c.page_size) * t.stride[0] + row % c.page_size * t.stride[1] +
               head * t.stride[2];
    if (of_q ? c.varlen : c.varlen_k)
        return ((of_q ? c.first_row_q(sequence) : c.first_row_k(sequence)) + row) * t.stride[0] + head * t.stride[1];
    return sequence * t.stride[0] + row * t.stride[1] + head * t.stride[2];
}

// What `from` holds at the keys and queries that are used, dequantised, into `to`, a case of the same shapes.
inline void copy_dequantised(CaseData& from, CaseData& to, TensorId id) {
    const Case &c = from.the_case(), &other = to.the_case();
    const bool of_q = id == TensorId::kQ;
    const foveal_tensor& t = of_q ? to.args().q : id == TensorId::kK ? to.args().k : to.args().v;
    const auto channels = static_cast<size_t>(id == TensorId::kV ? c.head_dim_v : c.head_dim);
    std::vector<float> values(channels);
    for (int64_t sequence = 0; sequence < c.batch; ++sequence)
        for (int64_t head = 0; head < (of_q ? c.heads_q : c.heads_k); ++head)
            for (int64_t row = 0; row < (of_q ? c.used_q(sequence) : c.used_k(sequence)); ++row) {
                from.read(id, sequence, head, row, 1, values.data());
                const int64_t at = row_offset(other, t, id, sequence, head, row);
                for (size_t i = 0; i < channels; ++i) {
                    const int64_t index = at + static_cast<int64_t>(i);
                    if (t.dtype == FOVEAL_F32)
                        static_cast<float*>(t.data)[index] = values[i];
                    else
                        static_cast<uint16_t*>(t.data)[index] =
                            t.dtype == FOVEAL_BF16 ? float_to_bf16(values[i]) : float_to_f16(values[i]);
                }
            }
}

inline Case dequantised_case(Case c, foveal_dtype dtype) {
    c.e4m3_keys = c.out_f16 = c.descaled = c.one_descale = c.row_descales = false;
    c.dtype = dtype;
    return c;
}

// plain: dequantised_case() of data's.
inline std::unique_ptr<CaseData> dequantised_data(CaseData& data, const Case& plain) {
    auto dequantised = make_case_data(plain, FOVEAL_BACKEND_CPU);
    for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV}) copy_dequantised(data, *dequantised, id);
    return dequantised;
}

}  // namespace foveal_testing
