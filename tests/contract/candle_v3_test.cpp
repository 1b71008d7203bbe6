// candle_v3.hpp on both backends: the literal cases of the crate's own tests, and all eight functions against float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "foveal/candle_v3.hpp"
#include "tests/support/case_data.hpp"
#include "tests/support/strided_tensor.hpp"
#include "tests/support/tolerance.hpp"

namespace foveal_testing {
namespace {

// ---- a problem in the crate's terms ---------------------------------------------------------------------------------

struct Lengths {
    int64_t q, k;
};

struct CandleProblem {
    std::vector<Lengths> sequences;  // dense: all alike
    bool varlen = false;
    int64_t heads_q = 1, heads_k = 1, head_dim = 64;
    foveal_dtype dtype = FOVEAL_F16;
    float scale = 0.5f;
    std::optional<size_t> left = {}, right = {};  // right 0 and no left: causal
    bool windowed = false;           // call the function that takes a window, else the one that takes `causal`
    std::vector<float> slopes = {};  // empty: no ALiBi

    int64_t total(int64_t Lengths::*of) const {
        int64_t sum = 0;
        for (const Lengths& lengths : sequences) sum += lengths.*of;
        return sum;
    }
    int64_t longest(int64_t Lengths::*of) const {
        int64_t most = 0;
        for (const Lengths& lengths : sequences) most = std::max(most, lengths.*of);
        return most;
    }
    bool causal() const { return !left && right == 0u; }
    Shape shape(int64_t Lengths::*of, int64_t heads) const {
        if (varlen) return {total(of), heads, head_dim};
        return {static_cast<int64_t>(sequences.size()), sequences.front().*of, heads, head_dim};
    }
};

// Memory order [b, h, s, d] or [h, total, d], as the crate's tests have it.
StridedTensor heads_first(foveal_backend backend, foveal_dtype dtype, const Shape& shape) {
    std::vector<size_t> order = {0, 2, 1, 3};
    if (shape.size() == 3) order = {1, 0, 2};
    return StridedTensor(backend, dtype, shape, strides_in_order(shape, order));
}

StridedTensor vector_of(foveal_backend backend, foveal_dtype dtype, const std::vector<float>& values) {
    StridedTensor tensor(backend, dtype, {static_cast<int64_t>(values.size())});
    tensor.set(values);
    return tensor;
}

std::vector<float> cumulated(const CandleProblem& p, int64_t Lengths::*of) {
    std::vector<float> sums = {0};
    for (const Lengths& lengths : p.sequences) sums.push_back(sums.back() + static_cast<float>(lengths.*of));
    return sums;
}

struct CandleData {
    CandleData(foveal_backend backend, const CandleProblem& p)
        : q(heads_first(backend, p.dtype, p.shape(&Lengths::q, p.heads_q))),
          k(heads_first(backend, p.dtype, p.shape(&Lengths::k, p.heads_k))),
          v(heads_first(backend, p.dtype, p.shape(&Lengths::k, p.heads_k))),
          out(heads_first(backend, p.dtype, p.shape(&Lengths::q, p.heads_q))),
          seqlens_q(vector_of(backend, FOVEAL_I32, cumulated(p, &Lengths::q))),
          seqlens_k(vector_of(backend, FOVEAL_I32, cumulated(p, &Lengths::k))),
          slopes(vector_of(backend, FOVEAL_F32, p.slopes)) {}

    StridedTensor q, k, v, out, seqlens_q, seqlens_k, slopes;
};

void call_dense(const CandleProblem& p, CandleData& data, bool hint) {
    using namespace foveal::candle_v3;
    const foveal::Tensor q = data.q.view(), k = data.k.view(), v = data.v.view(), out = data.out.view();
    const foveal::Tensor slopes = data.slopes.view();
    if (p.slopes.empty())
        p.windowed ? flash_attn_windowed(q, k, v, out, p.scale, p.left, p.right, hint)
                   : flash_attn(q, k, v, out, p.scale, p.causal(), hint);
    else
        p.windowed ? flash_attn_alibi_windowed(q, k, v, out, slopes, p.scale, p.left, p.right, hint)
                   : flash_attn_alibi(q, k, v, out, slopes, p.scale, p.causal(), hint);
}

void call_varlen(const CandleProblem& p, CandleData& data, bool hint) {
    using namespace foveal::candle_v3;
    const foveal::Tensor q = data.q.view(), k = data.k.view(), v = data.v.view(), out = data.out.view();
    const foveal::Tensor lens_q = data.seqlens_q.view(), lens_k = data.seqlens_k.view(), slopes = data.slopes.view();
    const auto max_q = static_cast<size_t>(p.longest(&Lengths::q)), max_k = static_cast<size_t>(p.longest(&Lengths::k));
    if (p.slopes.empty())
        p.windowed
            ? flash_attn_varlen_windowed(q, k, v, out, lens_q, lens_k, max_q, max_k, p.scale, p.left, p.right, hint)
            : flash_attn_varlen(q, k, v, out, lens_q, lens_k, max_q, max_k, p.scale, p.causal(), hint);
    else
        p.windowed
            ? flash_attn_varlen_alibi_windowed(q, k, v, out, slopes, lens_q, lens_k, max_q, max_k, p.scale, p.left,
                                               p.right, hint)
            : flash_attn_varlen_alibi(q, k, v, out, slopes, lens_q, lens_k, max_q, max_k, p.scale, p.causal(), hint);
}

void call(const CandleProblem& p, CandleData& data, bool use_gqa_packing) {
    p.varlen ? call_varlen(p, data, use_gqa_packing) : call_dense(p, data, use_gqa_packing);
}

// ---- what it should give: the header's text in float64, and in the type itself --------------------------------------

bool sees(const CandleProblem& p, const Lengths& lengths, int64_t i, int64_t j) {
    const int64_t position = i + lengths.k - lengths.q;
    return (!p.left || j >= position - static_cast<int64_t>(*p.left)) &&
           (!p.right || j <= position + static_cast<int64_t>(*p.right));
}

// Row i of a sequence and head. q, k, v, out: of the sequence's first row and the head; rows a stride apart.
template <class Real, class Round>
void attend(const CandleProblem& p, const Lengths& lengths, int64_t i, float slope, const float* q, const float* k,
            const float* v, int64_t row_stride_k, Round round, Real* out) {
    std::vector<Real> weights(static_cast<size_t>(lengths.k), 0);
    Real largest = -HUGE_VAL, sum = 0;
    for (int64_t j = 0; j < lengths.k; ++j) {
        Real x = 0;
        for (int64_t c = 0; c < p.head_dim; ++c)
            x += static_cast<Real>(q[c]) * static_cast<Real>(k[j * row_stride_k + c]);
        x = x * p.scale - slope * static_cast<Real>(std::abs(i + lengths.k - lengths.q - j));
        weights[static_cast<size_t>(j)] = sees(p, lengths, i, j) ? x : -static_cast<Real>(HUGE_VAL);
        largest = std::max(largest, weights[static_cast<size_t>(j)]);
    }
    std::fill_n(out, p.head_dim, Real{0});
    if (largest == -static_cast<Real>(HUGE_VAL)) return;
    for (int64_t j = 0; j < lengths.k; ++j) {
        const Real weight = std::exp(weights[static_cast<size_t>(j)] - largest);
        sum += weight;
        for (int64_t c = 0; c < p.head_dim; ++c) out[c] += round(weight) * static_cast<Real>(v[j * row_stride_k + c]);
    }
    for (int64_t c = 0; c < p.head_dim; ++c) out[c] = round(out[c] / sum);
}

std::string judged(const CandleProblem& p, CandleData& data) {
    const std::vector<float> q = data.q.values(), k = data.k.values(), v = data.v.values(), out = data.out.values();
    ErrorStatistics statistics(p.dtype);
    std::vector<double> oracle(static_cast<size_t>(p.head_dim));
    std::vector<float> reference(static_cast<size_t>(p.head_dim));
    int64_t first_q = 0, first_k = 0, sequence = 0;
    for (const Lengths& lengths : p.sequences) {
        for (int64_t head = 0; head < p.heads_q; ++head) {
            const int64_t head_k = head / (p.heads_q / p.heads_k), row_stride_k = p.heads_k * p.head_dim;
            const float* k0 = k.data() + first_k * row_stride_k + head_k * p.head_dim;
            const float* v0 = v.data() + first_k * row_stride_k + head_k * p.head_dim;
            const float slope = p.slopes.empty() ? 0 : p.slopes[static_cast<size_t>(head)];
            for (int64_t i = 0; i < lengths.q; ++i) {
                const int64_t at = ((first_q + i) * p.heads_q + head) * p.head_dim;
                attend(
                    p, lengths, i, slope, q.data() + at, k0, v0, row_stride_k, [](double x) { return x; },
                    oracle.data());
                attend(
                    p, lengths, i, slope, q.data() + at, k0, v0, row_stride_k,
                    [&](float x) { return round_to(p.dtype, x); }, reference.data());
                statistics.add_row(sequence, head, i, p.head_dim, out.data() + at, oracle.data(), reference.data());
            }
        }
        first_q += lengths.q;
        first_k += lengths.k;
        ++sequence;
    }
    return judge(statistics).failure;
}

// Channels 0, 1, 31, 62 and 63 of head 0 row 0, head 0 row 1, head 1 row 0, ..., rounded to four digits.
using Literals = std::vector<std::vector<float>>;
constexpr size_t kLiteralChannels[] = {0, 1, 31, 62, 63};

// Equal up to the rounding of four digits and one unit in the last place of f16.
void expect_literals(const CandleProblem& p, CandleData& data, const Literals& literals) {
    const std::vector<float> out = data.out.values();  // [s, h, d]
    const auto rows = static_cast<size_t>(p.sequences.front().q), heads = static_cast<size_t>(p.heads_q);
    for (size_t n = 0; n < literals.size(); ++n) {
        const size_t head = n / rows, row = n % rows;
        for (size_t i = 0; i < std::size(kLiteralChannels); ++i) {
            const float got = out[(row * heads + head) * static_cast<size_t>(p.head_dim) + kLiteralChannels[i]];
            EXPECT_NEAR(got, literals[n][i], 0.5e-4f + std::ldexp(1.0f, std::ilogb(got) - 10))
                << "head " << head << ", row " << row << ", channel " << kLiteralChannels[i];
        }
    }
}

// ---- fixture --------------------------------------------------------------------------------------------------------

class CandleV3 : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (backend() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    foveal_backend backend() const { return GetParam(); }

    // Calls, and judges the result.
    void expect_right(const CandleProblem& p, CandleData& data, bool use_gqa_packing = false) {
        call(p, data, use_gqa_packing);
        EXPECT_EQ(judged(p, data), "");
        EXPECT_TRUE(data.out.surroundings_untouched());
    }
};

INSTANTIATE_TEST_SUITE_P(Cpu, CandleV3, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, CandleV3, testing::Values(FOVEAL_BACKEND_SM90));

// ---- the crate's tests ----------------------------------------------------------------------------------------------

// 0, 1, 2, ... in memory order [h, s, d], divided as candle divides f16: multiplied with the rounded reciprocal.
std::vector<float> counted(int64_t rows, int64_t heads, int64_t head_dim, double divisor) {
    const float factor = round_to(FOVEAL_F16, static_cast<float>(1 / divisor));
    std::vector<float> values;  // [s, h, d]
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t head = 0; head < heads; ++head)
            for (int64_t c = 0; c < head_dim; ++c)
                values.push_back(round_to(FOVEAL_F16, static_cast<float>((head * rows + row) * head_dim + c)) * factor);
    return values;
}

struct Divisors {
    double q, k, v;
};

CandleData counted_data(foveal_backend backend, const CandleProblem& p, const Divisors& by) {
    CandleData data(backend, p);
    const Lengths lengths = p.sequences.front();
    data.q.set(counted(lengths.q, p.heads_q, p.head_dim, by.q));
    data.k.set(counted(lengths.k, p.heads_k, p.head_dim, by.k));
    data.v.set(counted(lengths.k, p.heads_k, p.head_dim, by.v));
    return data;
}

const Literals kThreeHeads = {
    {0.0808f, 0.0828f, 0.1428f, 0.205f, 0.2069f},  {0.1071f, 0.1091f, 0.1691f, 0.2312f, 0.2332f},
    {0.3765f, 0.3784f, 0.4385f, 0.5005f, 0.5024f}, {0.3816f, 0.3835f, 0.4436f, 0.5054f, 0.5073f},
    {0.6392f, 0.6411f, 0.7012f, 0.7632f, 0.7651f}, {0.6396f, 0.6416f, 0.7017f, 0.7637f, 0.7656f},
};

TEST_P(CandleV3, Acausal) {
    const CandleProblem p{.sequences = {{2, 2}}, .heads_q = 3, .heads_k = 3};
    CandleData data = counted_data(backend(), p, {300, 400, 500});
    expect_right(p, data);
    expect_literals(p, data, kThreeHeads);
}

TEST_P(CandleV3, AcausalGqa) {
    const CandleProblem p{.sequences = {{2, 2}}, .heads_q = 4, .heads_k = 1, .scale = 0.125f};
    CandleData data = counted_data(backend(), p, {1000, 400, 500});
    expect_right(p, data, true);
    expect_literals(p, data,
                    {{0.0653f, 0.0673f, 0.1273f, 0.1895f, 0.1914f},
                     {0.0679f, 0.0699f, 0.13f, 0.192f, 0.194f},
                     {0.0706f, 0.0725f, 0.1326f, 0.1947f, 0.1967f},
                     {0.0731f, 0.0751f, 0.1351f, 0.1973f, 0.1992f},
                     {0.0757f, 0.0776f, 0.1377f, 0.1998f, 0.2018f},
                     {0.0782f, 0.0802f, 0.1403f, 0.2023f, 0.2043f},
                     {0.0807f, 0.0826f, 0.1427f, 0.2048f, 0.2068f},
                     {0.0831f, 0.0851f, 0.1451f, 0.2072f, 0.2092f}});
}

TEST_P(CandleV3, Varlen) {
    const CandleProblem p{.sequences = {{2, 2}}, .varlen = true, .heads_q = 3, .heads_k = 3};
    CandleData data = counted_data(backend(), p, {300, 400, 500});
    expect_right(p, data);
    expect_literals(p, data, kThreeHeads);
}

TEST_P(CandleV3, VarlenOfEachHeadDimensionAndLength) {
    for (const int64_t head_dim : {64, 128, 256, 512}) {
        for (const int64_t rows : {2, 4, 9}) {
            SCOPED_TRACE("d" + std::to_string(head_dim) + " s" + std::to_string(rows));
            const CandleProblem p{
                .sequences = {{rows, rows}}, .varlen = true, .heads_q = 3, .heads_k = 3, .head_dim = head_dim};
            const auto unit = static_cast<double>(head_dim * rows);
            CandleData data = counted_data(backend(), p, {3 * unit, 4 * unit, 2 * unit});
            expect_right(p, data);
        }
    }
}

// ---- all eight functions --------------------------------------------------------------------------------------------

void fill_normal(StridedTensor& tensor, const Shape& shape, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(elements_of(shape)));
    for (float& x : values) x = normal(random);
    tensor.set(values);
}

void expect_right_of_normal(const CandleProblem& p, foveal_backend backend,
                            const std::function<void(CandleData&)>& expect) {
    CandleData data(backend, p);
    fill_normal(data.q, p.shape(&Lengths::q, p.heads_q), 1);
    fill_normal(data.k, p.shape(&Lengths::k, p.heads_k), 2);
    fill_normal(data.v, p.shape(&Lengths::k, p.heads_k), 3);
    expect(data);
}

// Full and causal through the function without a window; then windows, one side or both limited, and causal once more.
std::vector<CandleProblem> with_each_mask(const CandleProblem& p) {
    std::vector<CandleProblem> all(6, p);
    all[1].right = 0;
    for (size_t i = 2; i < all.size(); ++i) all[i].windowed = true;
    all[2].left = 7, all[2].right = 3;
    all[3].left = 20;
    all[4].right = 5;
    all[5].right = 0;
    return all;
}

class CandleV3OfHeadDim : public CandleV3 {
   protected:
    void expect_all(bool varlen, bool alibi) {
        for (const int64_t head_dim : {64, 128, 256, 512}) {
            for (const foveal_dtype dtype : {FOVEAL_F16, FOVEAL_BF16}) {
                CandleProblem plain{.sequences = {{50, 70}, {50, 70}},
                                    .varlen = varlen,
                                    .heads_q = 4,
                                    .heads_k = 2,
                                    .head_dim = head_dim,
                                    .dtype = dtype,
                                    .scale = 0.05f};
                if (varlen) plain.sequences = {{30, 40}, {0, 5}, {17, 9}, {1, 130}, {8, 0}};
                if (alibi) plain.slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
                for (const CandleProblem& p : with_each_mask(plain)) {
                    SCOPED_TRACE("d" + std::to_string(head_dim) + " " + dtype_name(dtype));
                    expect_right_of_normal(p, backend(), [&](CandleData& data) { expect_right(p, data, true); });
                }
            }
        }
    }
};

INSTANTIATE_TEST_SUITE_P(Cpu, CandleV3OfHeadDim, testing::Values(FOVEAL_BACKEND_CPU));
INSTANTIATE_TEST_SUITE_P(Sm90, CandleV3OfHeadDim, testing::Values(FOVEAL_BACKEND_SM90));

TEST_P(CandleV3OfHeadDim, Dense) { expect_all(false, false); }
TEST_P(CandleV3OfHeadDim, DenseAlibi) { expect_all(false, true); }
TEST_P(CandleV3OfHeadDim, Varlen) { expect_all(true, false); }
TEST_P(CandleV3OfHeadDim, VarlenAlibi) { expect_all(true, true); }

// ---- hints, and what is refused -------------------------------------------------------------------------------------

TEST_P(CandleV3, TheHintChangesNoBit) {
    const CandleProblem p{.sequences = {{50, 70}}, .heads_q = 8, .heads_k = 2};
    expect_right_of_normal(p, backend(), [&](CandleData& data) {
        call(p, data, false);
        const std::vector<std::byte> without = data.out.bytes();
        call(p, data, true);
        EXPECT_EQ(data.out.bytes(), without);
    });
}

TEST(CpuCandleV3, AbsurdWindowsAreNoLimit) {
    CandleProblem p{.sequences = {{20, 30}}, .windowed = true};
    p.left = p.right = SIZE_MAX;
    expect_right_of_normal(p, FOVEAL_BACKEND_CPU, [&](CandleData& data) {
        call(p, data, false);
        p.left = p.right = std::nullopt;
        EXPECT_EQ(judged(p, data), "");
    });
}

TEST(CpuCandleV3, RefusesByName) {
    const CandleProblem p{.sequences = {{20, 30}}, .heads_q = 4, .heads_k = 3};
    CandleData data(FOVEAL_BACKEND_CPU, p);
    try {
        call(p, data, true);
        FAIL() << "4 query heads for 3 key heads";
    } catch (const foveal::Error& error) {
        EXPECT_EQ(error.status(), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(error.what()).find("heads"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace foveal_testing
