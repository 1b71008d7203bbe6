// The contract of shared/design.md, section by section, on the CPU backend. Accuracy over many shapes is the business
// of suites_test.cpp; refusals are tried from C in c_abi_test.c.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/cpu/fixture.hpp"

namespace foveal_testing {
namespace {

// ---- 1.1 Tensors

TEST(Contract_1_1, DenseAndVarlenOfEveryType) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        expect_right("b2 sq33 sk70 hq4 hk2 d64 " + type + " lse");
        expect_right("varlen qlens=33,5 klens=70,9 hq4 hk2 d64 " + type + " causal lse");
    }
}

TEST(Contract_1_1, AnyRatioOfHeads) {
    for (const std::string heads : {"h1", "h7", "hq6 hk3", "hq15 hk5", "hq35 hk7", "hq64 hk1"}) {
        expect_right("b2 sq20 sk30 d16 f32 causal " + heads);
    }
}

TEST(Contract_1_1, AnyHeadDimension) {
    for (int d = 1; d <= 40; ++d) {
        expect_right("sq9 sk13 h3 f32 causal d" + std::to_string(d) + " dv" + std::to_string(41 - d));
        expect_right("sq9 sk13 h3 bf16 lse d" + std::to_string(d) + " dv" + std::to_string(41 - d));
    }
}

TEST(Contract_1_1, FreeStrides) {
    for (const std::string memory : {"pad", "bhsd", "pad bhsd"}) {
        for (const std::string type : {"f32", "bf16"}) {
            expect_right("b3 sq33 sk50 hq4 hk2 d24 dv40 lse causal " + type + " " + memory);
            expect_right("varlen qlens=33,0,4 klens=50,7,9 hq4 hk2 d24 dv40 lse " + type + " " + memory);
        }
    }
}

TEST(Contract_1_1, SequencesShortenedByUsedLengths) {
    expect_right("b4 sq33 sk50 hq4 hk2 d24 f32 lse causal used_q=33,0,1,20 used_k=50,50,3,0");
    expect_right("varlen qlens=33,5,20 klens=50,9,20 hq4 hk2 d24 bf16 lse causal used_q=30,0,20 used_k=1,9,0");
}

// A pointer that is aligned to its element and to nothing more.
TEST(Contract_1_1, ElementAlignmentIsEnoughOnTheCpu) {
    const Case c = parse_case("b2 sq9 sk17 hq4 hk2 d20 bf16");
    const auto expected = run(to_text(c));
    const auto data = make_case_data(c, kCpu);
    foveal_forward_args args = data->args();
    std::vector<std::vector<uint16_t>> shifted;
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v}) {
        const auto elements = static_cast<size_t>(tensor->shape[0] * tensor->stride[0]);
        shifted.emplace_back(elements + 1);
        std::memcpy(shifted.back().data() + 1, tensor->data, elements * 2);
        tensor->data = shifted.back().data() + 1;
    }
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(data->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
}

// The strides of a dimension of size 1 are never followed, whatever they are.
TEST(Contract_1_1, StridesOfSingletonsMeanNothing) {
    const auto data = make_case_data(parse_case("b1 sq1 sk3 h1 d8 f32 lse"), kCpu);
    foveal_forward_args args = data->args();
    for (foveal_tensor* tensor : {&args.q, &args.out, &args.lse}) {
        for (int i = 0; i + 1 < tensor->rank; ++i) tensor->stride[i] = i == 0 ? -7 : 0;
    }
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

// Memory of address space alone; pages come into being where they are touched.
class SparseMemory {
   public:
    explicit SparseMemory(size_t bytes) : bytes_(bytes) {
        data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    SparseMemory(const SparseMemory&) = delete;
    SparseMemory& operator=(const SparseMemory&) = delete;
    ~SparseMemory() {
        if (ok()) munmap(data_, bytes_);
    }
    bool ok() const { return data_ != MAP_FAILED; }
    char* data() const { return static_cast<char*>(data_); }

   private:
    size_t bytes_;
    void* data_;
};

TEST(Contract_1_1, TensorsBeyond32BitIndices) {
    constexpr int64_t kFar = (int64_t{1} << 31) + 64;  // elements between the two sequences
    const Case c = parse_case("b2 sq5 sk7 h2 d16 bf16");
    const auto data = make_case_data(c, kCpu);
    foveal_forward_args args = data->args();
    std::vector<std::unique_ptr<SparseMemory>> memory;
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) {
        memory.push_back(std::make_unique<SparseMemory>((kFar + tensor->stride[0]) * 2));
        if (!memory.back()->ok()) GTEST_SKIP() << "SKIPPED: no 16 GiB of address space";
        const auto bytes = static_cast<size_t>(tensor->stride[0]) * 2;
        const char* dense = static_cast<const char*>(tensor->data);
        std::memcpy(memory.back()->data(), dense, bytes);
        std::memcpy(memory.back()->data() + kFar * 2, dense + bytes, bytes);
        tensor->data = memory.back()->data();
    }
    const int64_t near_out = args.out.stride[0];
    for (foveal_tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) tensor->stride[0] = kFar;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();

    char* dense_out = static_cast<char*>(data->args().out.data);
    std::memcpy(dense_out, memory[3]->data(), static_cast<size_t>(near_out) * 2);
    std::memcpy(dense_out + near_out * 2, memory[3]->data() + kFar * 2, static_cast<size_t>(near_out) * 2);
    const Verdict verdict = verify(*data);
    EXPECT_TRUE(verdict.pass) << verdict.failure;
}

// Offsets that would lead outside the tensors are noticed where the host can read them.
TEST(Contract_1_1, LengthsThatLeaveTheirTensorAreRefused) {
    const auto data = make_case_data(parse_case("varlen qlens=5,6 klens=7,8 h2 d8 f32"), kCpu);
    auto* offsets = static_cast<int32_t*>(data->args().cu_seqlens_k.data);
    for (const std::vector<int32_t>& wrong : {std::vector<int32_t>{0, 9, 8}, {0, 7, 16}, {-1, 7, 15}}) {
        std::copy(wrong.begin(), wrong.end(), offsets);
        EXPECT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find("cu_seqlens_k"), std::string::npos) << foveal_last_error();
    }
    const auto dense = make_case_data(parse_case("b2 s5 h2 d8 f32 used_k=5,5"), kCpu);
    static_cast<int32_t*>(dense->args().seqused_k.data)[1] = 6;
    EXPECT_EQ(foveal_forward(&dense->args(), nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("seqused_k"), std::string::npos) << foveal_last_error();
    EXPECT_EQ(dense->scan(TensorId::kOut).poison, dense->scan(TensorId::kOut).elements) << "a refused call wrote";
}

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

// ---- 1.4 Empty

TEST(Contract_1_4, RowsThatSeeNoKeyAreExactlyZero) {
    for (const std::string type : {"f32", "bf16", "f16"}) {
        expect_empty_rows(*run("b2 sq300 sk7 hq4 hk2 d24 causal lse " + type), 1, 0, 293);
        expect_empty_rows(*run("b2 sq70 sk0 hq4 hk2 d24 lse " + type), 1, 0, 70);
        expect_empty_rows(*run("varlen qlens=3,5 klens=9,0 hq4 hk2 d24 lse " + type), 1, 0, 5);
        expect_empty_rows(*run("b2 sq5 sk9 hq4 hk2 d24 lse used_k=0,9 " + type), 0, 0, 5);
    }
}

TEST(Contract_1_4, AnyMixOfZeroLengths) {
    for (const std::string shape :
         {"b0 s5", "b3 sq0 sk5", "b3 sq5 sk0", "b3 s0", "varlen qlens= klens=", "varlen qlens=0,0 klens=0,0",
          "varlen qlens=0,0 klens=3,0", "varlen qlens=3,0 klens=0,0", "varlen qlens=0,3,0,1 klens=1,0,0,4"}) {
        for (const std::string mask : {"full", "causal", "causal topleft"})
            expect_right(shape + " hq4 hk2 d24 f32 lse " + mask);
    }
}

// ---- 1.5 Log-sum-exp

TEST(Contract_1_5, IsOptionalAndChangesNothing) {
    for (const std::string text :
         {"b2 s100 hq4 hk2 d24 f32 causal", "varlen qlens=9,70 klens=100,3 hq4 hk2 d24 bf16 causal"}) {
        EXPECT_EQ(run(text)->bytes(TensorId::kOut), run(text + " lse")->bytes(TensorId::kOut)) << text;
    }
}

TEST(Contract_1_5, IsTheNaturalLogarithm) {
    const auto data = run("sq3 sk50 h1 d8 f32 scale0 lse");
    for (const float lse : rows_of(*data, TensorId::kLse, 0, 0)) EXPECT_NEAR(lse, std::log(50.0f), 1e-6f);
}

// ---- 1.6 Isolation

TEST(Contract_1_6, WhatLiesPastTheUsedLengthsNeverMatters) {
    const std::string text = "b3 sq70 sk200 hq4 hk2 d24 f32 lse causal used_q=70,1,33 used_k=129,0,200";
    const auto with_nan = run(text);  // unused rows hold NaN
    for (const float garbage : {0.0f, HUGE_VALF, -3e38f}) {
        const auto data = make_case_data(parse_case(text), kCpu);
        for (int64_t n = 0; n < 3; ++n) {
            overwrite_rows(data->args().q, n, data->the_case().used_q(n), 70, garbage);
            overwrite_rows(data->args().k, n, data->the_case().used_k(n), 200, garbage);
            overwrite_rows(data->args().v, n, data->the_case().used_k(n), 200, garbage);
        }
        ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
        EXPECT_EQ(data->bytes(TensorId::kOut), with_nan->bytes(TensorId::kOut)) << garbage;
        EXPECT_EQ(data->bytes(TensorId::kLse), with_nan->bytes(TensorId::kLse)) << garbage;
    }
}

TEST(Contract_1_6, NeighboursOfAVarlenSequenceNeverMatter) {
    const std::string text = "varlen qlens=33,40,9 klens=65,70,130 hq4 hk2 d24 f32 lse causal";
    const auto clean = run(text);
    const auto data = make_case_data(parse_case(text), kCpu);
    for (const foveal_tensor* tensor : {&data->args().q, &data->args().k, &data->args().v}) {
        const bool of_q = tensor == &data->args().q;
        const int64_t first = of_q ? 33 : 65, last = of_q ? 73 : 135;  // the sequence in the middle
        float* values = static_cast<float*>(tensor->data);
        std::fill(values, values + first * tensor->stride[0], NAN);
        std::fill(values + last * tensor->stride[0], values + tensor->shape[0] * tensor->stride[0], NAN);
    }
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    for (int64_t head = 0; head < 4; ++head) {
        EXPECT_TRUE(same_bits(rows_of(*data, TensorId::kOut, 1, head), rows_of(*clean, TensorId::kOut, 1, head)));
        EXPECT_TRUE(same_bits(rows_of(*data, TensorId::kLse, 1, head), rows_of(*clean, TensorId::kLse, 1, head)));
        EXPECT_TRUE(std::isnan(rows_of(*data, TensorId::kOut, 0, head)[0])) << "what lies inside propagates";
    }
}

TEST(Contract_1_6, NaNInsideReachesTheRowsThatSeeIt) {
    const std::string text = "b1 s100 h1 d24 f32 lse causal";
    const auto clean = run(text);
    const auto data = make_case_data(parse_case(text), kCpu);
    overwrite_rows(data->args().q, 0, 10, 11, NAN);
    overwrite_rows(data->args().k, 0, 70, 71, NAN);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    const std::vector<float> got = rows_of(*data, TensorId::kOut, 0, 0),
                             expected = rows_of(*clean, TensorId::kOut, 0, 0);
    const std::vector<float> lse = rows_of(*data, TensorId::kLse, 0, 0);
    for (size_t i = 0; i < 100; ++i) {
        const bool sees_nan = i == 10 || i >= 70;
        EXPECT_EQ(std::isnan(lse[i]), sees_nan) << i;
        for (size_t n = 0; n < 24; ++n) {
            EXPECT_EQ(std::isnan(got[i * 24 + n]), sees_nan) << i;
            EXPECT_TRUE(sees_nan || got[i * 24 + n] == expected[i * 24 + n]) << i;
        }
    }
}

TEST(Contract_1_6, NaNInVReachesItsChannelAlone) {
    const auto data = make_case_data(parse_case("b1 s100 h1 d24 f32 full"), kCpu);
    static_cast<float*>(data->args().v.data)[37 * data->args().v.stride[1] + 5] = NAN;
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    const std::vector<float> got = rows_of(*data, TensorId::kOut, 0, 0);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i % 24 == 5) << i;
}

TEST(Contract_1_6, ScoresOfMinusInfinityHaveNoWeight) {
    const auto data = make_case_data(parse_case("b1 sq2 sk90 h1 d8 f32 full lse"), kCpu);
    overwrite_rows(data->args().q, 0, 0, 2, 1.0f);
    overwrite_rows(data->args().k, 0, 0, 89, -HUGE_VALF);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    std::vector<float> v(8);
    data->read(TensorId::kV, 0, 0, 89, 1, v.data());
    const std::vector<float> out = rows_of(*data, TensorId::kOut, 0, 0);
    for (size_t n = 0; n < 16; ++n) EXPECT_EQ(out[n], v[n % 8]);

    overwrite_rows(data->args().k, 0, 89, 90, -HUGE_VALF);  // now every score: as if no key were seen
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    expect_empty_rows(*data, 0, 0, 2);
}

// ---- 1.7 Repeatability

TEST(Contract_1_7, TheSameBitsOnEveryRun) {
    for (const std::string text : {"b3 sq130 sk201 hq8 hk2 d64 bf16 causal lse", "b1 s700 h2 d40 f32 lse",
                                   "varlen qlens=5,0,130,70 klens=64,9,300,1 h4 d64 f16 causal lse"}) {
        const auto first = run(text);
        for (int again = 0; again < 3; ++again) {
            const auto data = run(text);
            EXPECT_EQ(data->bytes(TensorId::kOut), first->bytes(TensorId::kOut)) << text;
            EXPECT_EQ(data->bytes(TensorId::kLse), first->bytes(TensorId::kLse)) << text;
        }
    }
}

// The first sequence of a batch draws the same inputs whatever follows it.
TEST(Contract_1_7, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d64 bf16 causal lse", " hq4 hk2 d64 f32 lse", " h1 d64 f16 lse"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq131 sk203", "b9 sq131 sk203"},
              {"b1 sq1 sk1000", "b9 sq1 sk1000"},
              {"varlen qlens=131 klens=203",
               "varlen qlens=131,5,0,300,64,9,1,128,77 klens=203,9,4,0,64,500,1,128,300"}}) {
            const auto one = run(alone + tail), nine = run(together + tail);
            for (int64_t head = 0; head < one->the_case().heads_q; ++head) {
                EXPECT_TRUE(same_bits(rows_of(*one, TensorId::kOut, 0, head), rows_of(*nine, TensorId::kOut, 0, head)))
                    << together + tail;
                EXPECT_TRUE(same_bits(rows_of(*one, TensorId::kLse, 0, head), rows_of(*nine, TensorId::kLse, 0, head)))
                    << together + tail;
            }
        }
    }
}

// ---- 1.8 Resources

TEST(Contract_1_8, MemoryDoesNotGrowWithTheSquareOfTheLength) {
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "SKIPPED: AddressSanitizer keeps freed memory";
#endif
    const auto data = make_case_data(parse_case("s12000 h1 d16 f32 causal"), kCpu);  // scores: 576 MB
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    getrusage(RUSAGE_SELF, &after);
    EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 32 * 1024) << "KiB more at the peak";
}

TEST(Contract_1_8, AKeptPlanNeedsNoWorkspaceAndGivesTheSameBits) {
    const auto expected = run("b2 sq70 sk90 hq4 hk2 d24 f32 causal lse");
    const auto data = make_case_data(expected->the_case(), kCpu);
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&data->args(), -1, &plan), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_plan_workspace_bytes(plan), 0u);
    EXPECT_EQ(foveal_plan_launch(plan, &data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
    foveal_plan_destroy(plan);
    EXPECT_EQ(data->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
}

TEST(Contract_1_8, SeveralThreadsAtOnce) {
    const std::string text = "b2 sq130 sk201 hq8 hk2 d64 bf16 causal lse";
    const auto expected = run(text);
    std::vector<std::unique_ptr<CaseData>> data;
    for (int i = 0; i < 4; ++i) data.push_back(make_case_data(parse_case(text), kCpu));
    std::vector<std::thread> threads;
    std::vector<foveal_status> statuses(4, FOVEAL_INTERNAL_ERROR);
    for (size_t i = 0; i < 4; ++i) {
        threads.emplace_back([&, i] {
            for (int n = 0; n < 5; ++n) statuses[i] = foveal_forward(&data[i]->args(), nullptr);
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(statuses[i], FOVEAL_OK);
        EXPECT_EQ(data[i]->bytes(TensorId::kOut), expected->bytes(TensorId::kOut));
    }
}

// A plan can be read before there is a GPU to run it on.
TEST(Contract_1_8, PlansForAGpuNeedNone) {
    const foveal_forward_args args =
        shape_args(parse_case("b128 s1024 hq32 hk8 d128 bf16 causal"), FOVEAL_BACKEND_SM90);
    foveal_plan* plan = nullptr;
    ASSERT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(foveal_plan_workspace_bytes(plan), 0u);
    std::string text(10000, '\0');
    size_t needed = 0;
    ASSERT_EQ(foveal_plan_describe(plan, text.data(), text.size(), &needed), FOVEAL_OK);
    text.resize(needed - 1);
    for (const char* word : {"sm90", "tile", "grid", "shared", "registers", "workspace", "bound"}) {
        EXPECT_NE(text.find(word), std::string::npos) << word << " is missing in:\n" << text;
    }
    foveal_plan_destroy(plan);
}

// ---- 1.9 Refuse, never ignore

TEST(Contract_1_9, MessagesBelongToTheirThread) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.window_left = -5;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    const std::string mine = foveal_last_error();
    EXPECT_NE(mine.find("window_left"), std::string::npos) << mine;
    std::string at_start = "?", theirs;
    std::thread([&] {
        at_start = foveal_last_error();
        foveal_forward_args other = data->args();
        other.alignment = 9;
        (void)foveal_forward(&other, nullptr);
        theirs = foveal_last_error();
    }).join();
    EXPECT_EQ(at_start, "");
    EXPECT_NE(theirs.find("alignment"), std::string::npos) << theirs;
    EXPECT_EQ(foveal_last_error(), mine);
}

TEST(Contract_1_9, TheMessageOutlivesASuccess) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.window_left = -5;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    EXPECT_NE(std::string(foveal_last_error()).find("window_left"), std::string::npos);
}

class ScopedEnvironment {
   public:
    ScopedEnvironment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
    ScopedEnvironment(const ScopedEnvironment&) = delete;
    ScopedEnvironment& operator=(const ScopedEnvironment&) = delete;
    ~ScopedEnvironment() { unsetenv(name_); }

   private:
    const char* name_;
};

TEST(Contract_1_9, TheEnvironmentForcesABackend) {
    const auto data = make_case_data(parse_case("s5 h2 d8 f32"), kCpu);
    foveal_forward_args args = data->args();
    args.backend = FOVEAL_BACKEND_AUTO;
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "cpu");
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    }
    data->poison_outputs();
    const OutputScan before = data->scan(TensorId::kOut);
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "sm90");  // d = 8 in f32 on host memory: it cannot
        EXPECT_NE(foveal_forward(&args, nullptr), FOVEAL_OK);
    }
    {
        const ScopedEnvironment forced("FOVEAL_BACKEND", "tpu");
        EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(foveal_last_error()).find("tpu"), std::string::npos) << foveal_last_error();
    }
    EXPECT_EQ(data->scan(TensorId::kOut), before) << "a refused call wrote";
}

TEST(Contract_1_9, SupportsAnswersWithoutPointersOrDevice) {
    foveal_forward_args args = shape_args(parse_case("b2 s1000 hq4 hk2 d128 bf16 causal"), kCpu);
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
    args.backend = FOVEAL_BACKEND_AUTO;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
    args.backend = FOVEAL_BACKEND_SM90;
    EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
}

// What sm90 refuses it names, on a machine without a GPU and in a build without CUDA too.
TEST(Contract_1_9, Sm90NamesWhatItRefuses) {
    const auto expect_refusal = [](const foveal_forward_args& args, const std::vector<std::string>& words) {
        EXPECT_EQ(foveal_supports(&args), FOVEAL_UNSUPPORTED) << words[0];
        for (const std::string& word : words) {
            EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
                << word << " in: " << foveal_last_error();
        }
    };
    const auto shape = [](const std::string& text) { return shape_args(parse_case(text), FOVEAL_BACKEND_SM90); };
    expect_refusal(shape("s64 h2 d128 f32"), {"f32"});
    expect_refusal(shape("s64 h2 d7 bf16"), {"7"});
    expect_refusal(shape("s64 h2 d128 dv36 bf16"), {"36"});
    expect_refusal(shape("s64 h2 d520 bf16"), {"520"});
    expect_refusal(shape("s64 h2 d128 dv520 bf16"), {"520"});
    foveal_forward_args odd = shape("s64 h2 d128 bf16");
    odd.k.stride[1] += 1;
    odd.k.stride[0] += 64;
    expect_refusal(odd, {"k's row stride", "257"});
}

}  // namespace
}  // namespace foveal_testing
