// Scores and masks (contract 1.2 and 1.3), on the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.2 Score

TEST(Contract_1_2, DefaultScaleIsOneOverRootD) {
    const auto by_default = run("b2 s70 h2 d40 f32 lse");
    const auto data = make_case_data(parse_case("b2 s70 h2 d40 f32 lse"), kCpu);
    foveal_forward_args args = data->args();
    EXPECT_TRUE(std::isnan(args.scale));
    args.scale = static_cast<float>(1 / std::sqrt(40.0));
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK);
    EXPECT_EQ(data->bytes(TensorId::kOut), by_default->bytes(TensorId::kOut));
    EXPECT_EQ(data->bytes(TensorId::kLse), by_default->bytes(TensorId::kLse));
}

TEST(Contract_1_2, AnyFiniteScale) {
    for (const std::string scale : {"scale0", "scale-0.3", "scale2", "scale1e-5 sd1", "scale100 sd1"}) {
        expect_right("b2 sq33 sk70 h4 d64 f32 lse causal " + scale);
        expect_right("b2 sq33 sk70 h4 d64 bf16 lse " + scale);
    }
}

TEST(Contract_1_2, LogitsOfAnySpread) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        for (const std::string sd : {"sd0.3", "sd1", "sd3", "sd10", "sd30"})
            expect_right("s300 h2 d64 lse " + type + " " + sd);
        for (const std::string sink : {"sink20@0", "sink60@mid", "sink200@last"}) {
            expect_right("s300 h2 d64 lse causal " + type + " " + sink);
        }
    }
}

// ---- 1.3 Mask. With q = 0 every visible key has the same weight, and with v_j the j-th unit vector, out tells which.

struct MaskCase {
    int64_t len_q, len_k, left, right;
    bool top_left;
    int64_t chunk = 0;
};

void expect_mask(const MaskCase& m) {
    std::vector<float> q(static_cast<size_t>(m.len_q)), k(static_cast<size_t>(m.len_k), 1.0f);
    std::vector<float> v(static_cast<size_t>(m.len_k * m.len_k)), out(static_cast<size_t>(m.len_q * m.len_k), -1.0f);
    for (int64_t j = 0; j < m.len_k; ++j) v[static_cast<size_t>(j * m.len_k + j)] = 1;
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = kCpu;
    args.q = {q.data(), FOVEAL_F32, 4, {1, m.len_q, 1, 1}, {m.len_q, 1, 1, 1}};
    args.k = {k.data(), FOVEAL_F32, 4, {1, m.len_k, 1, 1}, {m.len_k, 1, 1, 1}};
    args.v = {v.data(), FOVEAL_F32, 4, {1, m.len_k, 1, m.len_k}, {m.len_k * m.len_k, m.len_k, m.len_k, 1}};
    args.out = {out.data(), FOVEAL_F32, 4, {1, m.len_q, 1, m.len_k}, {m.len_q * m.len_k, m.len_k, m.len_k, 1}};
    args.window_left = m.left;
    args.window_right = m.right;
    args.alignment = m.top_left ? FOVEAL_TOP_LEFT : FOVEAL_BOTTOM_RIGHT;
    args.chunk = m.chunk;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();

    const int64_t off = m.top_left ? 0 : m.len_k - m.len_q;
    for (int64_t i = 0; i < m.len_q; ++i) {
        std::vector<bool> visible;
        for (int64_t j = 0; j < m.len_k; ++j) {
            visible.push_back((m.left == FOVEAL_UNLIMITED || i + off - j <= m.left) &&
                              (m.right == FOVEAL_UNLIMITED || j - i - off <= m.right) &&
                              (m.chunk == 0 || (i + off >= 0 && (i + off) / m.chunk == j / m.chunk)));
        }
        const auto count = std::count(visible.begin(), visible.end(), true);
        for (int64_t j = 0; j < m.len_k; ++j) {
            const float got = out[static_cast<size_t>(i * m.len_k + j)];
            const float expected = visible[static_cast<size_t>(j)] ? 1.0f / static_cast<float>(count) : 0.0f;
            ASSERT_NEAR(got, expected, expected * 1e-6f)
                << "len_q " << m.len_q << " len_k " << m.len_k << " left " << m.left << " right " << m.right
                << " top_left " << m.top_left << " chunk " << m.chunk << " i " << i << " j " << j;
        }
    }
}

TEST(Contract_1_3, EveryWindowOfSmallShapes) {
    for (const bool top_left : {false, true}) {
        for (const int64_t left : {-1, 0, 1, 3}) {
            for (const int64_t right : {-1, 0, 1, 3}) {
                for (int64_t len_q = 1; len_q <= 7; ++len_q) {
                    for (int64_t len_k = 1; len_k <= 9; ++len_k) {
                        expect_mask({len_q, len_k, left, right, top_left});
                        if (HasFatalFailure()) return;
                    }
                }
            }
        }
    }
}

TEST(Contract_1_3, EveryChunkOfSmallShapes) {
    for (const bool top_left : {false, true}) {
        for (const int64_t chunk : {1, 2, 3, 5, 20}) {
            for (const auto& [left, right] : {std::pair<int64_t, int64_t>{-1, -1}, {-1, 0}, {1, 2}}) {
                for (int64_t len_q = 1; len_q <= 9; ++len_q) {
                    for (int64_t len_k = 1; len_k <= 9; ++len_k) {
                        expect_mask({len_q, len_k, left, right, top_left, chunk});
                        if (HasFatalFailure()) return;
                    }
                }
            }
        }
    }
}

TEST(Contract_1_3, ChunksAcrossTiles) {
    for (const bool top_left : {false, true}) {
        for (const int64_t chunk : {int64_t{63}, int64_t{64}, int64_t{100}, int64_t{1} << 40}) {
            for (const auto& [len_q, len_k] : {std::pair<int64_t, int64_t>{129, 257}, {257, 129}, {200, 200}}) {
                expect_mask({len_q, len_k, -1, 0, top_left, chunk});
                expect_mask({len_q, len_k, 80, 30, top_left, chunk});
                if (HasFatalFailure()) return;
            }
        }
    }
}

// Across the tiles of the implementation, whatever they are.
TEST(Contract_1_3, WindowsAcrossTiles) {
    for (const bool top_left : {false, true}) {
        for (const auto& [left, right] :
             {std::pair<int64_t, int64_t>{-1, 0}, {0, 0}, {70, 0}, {5, 130}, {200, -1}, {1 << 20, 7}}) {
            for (const auto& [len_q, len_k] : {std::pair<int64_t, int64_t>{129, 257}, {257, 129}, {200, 200}}) {
                expect_mask({len_q, len_k, left, right, top_left});
                if (HasFatalFailure()) return;
            }
        }
    }
}

TEST(Contract_1_3, WindowsPastEverySequenceAreUnlimited) {
    expect_mask({5, 7, INT64_MAX, INT64_MAX, false});
    expect_mask({7, 5, INT64_MAX, 0, false});
    expect_mask({7, 5, 0, INT64_MAX - 1, true});
    expect_mask({7, 5, int64_t{1} << 32, int64_t{1} << 31, true});
}

TEST(Contract_1_3, LengthsAreEachSequencesOwn) {
    expect_right("varlen qlens=5,40,1 klens=40,5,70 h2 d16 f32 causal lse");
    expect_right("varlen qlens=5,40,1 klens=40,5,70 h2 d16 f32 causal topleft lse");
    expect_right("b3 sq40 sk70 h2 d16 f32 causal lse used_q=5,40,1 used_k=40,5,70");
    expect_right("b3 sq40 sk70 h2 d16 f32 left3 right2 lse used_q=5,40,1 used_k=40,5,70");
}

}  // namespace
}  // namespace foveal_testing
