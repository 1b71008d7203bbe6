// What the tests of dropout share: the mask of a case, and a v or a dout that lets the weights be seen.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "foveal/foveal.h"
#include "tests/support/case.hpp"

namespace foveal_testing {

// [b, h_q, s_q, s_k], as foveal_dropout_mask() has it: of a dense case.
inline std::vector<uint8_t> mask_of(const Case& c) {
    std::vector<uint8_t> mask(static_cast<size_t>(c.batch * c.heads_q * c.rows_q * c.rows_k));
    const auto state = c.dropout_state();
    EXPECT_EQ(foveal_dropout_mask(c.batch, c.heads_q, c.rows_q, c.rows_k, c.dropout, state.data(), mask.data()),
              FOVEAL_OK)
        << foveal_last_error();
    return mask;
}

// 1 where the row's number is the channel's, else 0. Of [b, s, h, channels] in f32 or bf16.
inline void make_identity(const foveal_tensor& t) {
    ASSERT_TRUE(t.rank == 4 && (t.dtype == FOVEAL_F32 || t.dtype == FOVEAL_BF16));
    const int64_t bytes = t.dtype == FOVEAL_F32 ? 4 : 2;
    const uint32_t one = t.dtype == FOVEAL_F32 ? 0x3F800000 : 0x3F80;
    for (int64_t b = 0; b < t.shape[0]; ++b)
        for (int64_t row = 0; row < t.shape[1]; ++row)
            for (int64_t head = 0; head < t.shape[2]; ++head) {
                std::byte* const at = static_cast<std::byte*>(t.data) +
                                      (b * t.stride[0] + row * t.stride[1] + head * t.stride[2]) * bytes;
                std::memset(at, 0, static_cast<size_t>(t.shape[3] * bytes));
                if (row < t.shape[3]) std::memcpy(at + row * bytes, &one, static_cast<size_t>(bytes));
            }
}

}  // namespace foveal_testing
