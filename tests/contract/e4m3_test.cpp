// Attention over e4m3 (contract 1.14), on the CPU backend. Every form and option against the oracle: the lists of
// correctness_suites.cpp and grid.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "foveal/foveal.hpp"
#include "tests/cpu/fixture.hpp"
#include "tests/support/dequantised.hpp"

namespace foveal_testing {
namespace {

// ---- The result is that of dequantised tensors, bit for bit

std::vector<float> all_rows_of(CaseData& data, TensorId id) {
    std::vector<float> all;
    for (int64_t sequence = 0; sequence < data.the_case().batch; ++sequence)
        for (int64_t head = 0; head < data.the_case().heads_q; ++head) {
            const std::vector<float> rows = rows_of(data, id, sequence, head);
            all.insert(all.end(), rows.begin(), rows.end());
        }
    return all;
}

void expect_same(const std::string& text, const std::vector<float>& got, const std::vector<float>& expected) {
    ASSERT_EQ(got.size(), expected.size()) << text;
    for (size_t i = 0; i < got.size(); ++i)
        ASSERT_TRUE((std::isnan(got[i]) && std::isnan(expected[i])) || same_bits({got[i]}, {expected[i]}))
            << text << ", element " << i << ": " << got[i] << ", of dequantised tensors " << expected[i];
}

// `text` holds e4m3; the same problem in `dtype`, its tensors being the dequantised ones, gives the same result.
void expect_as_dequantised(const std::string& text, foveal_dtype dtype) {
    const auto data = run(text);
    const Case plain = dequantised_case(data->the_case(), dtype);
    const auto dequantised = dequantised_data(*data, plain);
    ASSERT_EQ(foveal_forward(&dequantised->args(), nullptr), FOVEAL_OK) << text << ": " << foveal_last_error();
    std::vector<float> expected = all_rows_of(*dequantised, TensorId::kOut);
    for (float& x : expected) x = round_to(data->the_case().out_dtype(), x);
    expect_same(text, all_rows_of(*data, TensorId::kOut), expected);
    if (plain.lse) expect_same(text, all_rows_of(*data, TensorId::kLse), all_rows_of(*dequantised, TensorId::kLse));
}

// Forms, masks and options; of bias_f32 alone, as a bias in out's type is drawn in that type.
const std::vector<std::string>& problems() {
    static const std::vector<std::string> list = {
        "b2 sq1 sk1500 hq8 hk2 d64",
        "b2 sq1 sk700 hq4 hk4 d128 causal",
        "b3 sq3 sk200 hq4 hk1 d40 dv24 causal left60",
        "b2 sq200 sk330 hq4 hk2 d64 causal",
        "b2 sq200 sk330 hq4 hk2 d64 left40 right9 topleft",
        "b1 sq70 sk333 hq2 hk2 d129 dv3 chunk64",
        "b2 sq20 sk800 hq16 hk2 d128 causal",
        "varlen qlens=5,0,70,300 klens=64,3,7,130 hq4 hk2 d64 causal",
        "varlen qlens=1,1,1 sk300 used_k=300,0,77 hq8 hk1 d64 page16",
        "b3 sq2 sk517 used_k=517,1,64 hq4 hk2 d64 page17 csr causal",
        "b2 sq9 sk100 hq4 hk2 d64 page8 pool order3 used_k=100,50 bhsd",
        "b2 sq9 klens=256,7 hq4 hk2 d32",
        "b2 sq40 sk90 hq2 hk2 d64 used_q=40,7 used_k=90,11 pad causal",
        "b2 sq100 sk150 hq2 hk1 d64 softcap20 alibi_b sinks1 causal",
        "b2 sq100 sk150 hq2 hk1 d64 bias_f32=bh bias_inf mask=b1",
        "b2 sq4 sk150 hq2 hk1 d64 bias_f32=1h mask=11 sinks",
        "b2 sq4 sk150 hq2 hk1 d64 scale-0.1 qoff=5,-3 causal",
        "b2 sq70 sk90 hq2 hk1 d64 scale0 tree causal",
        "b2 sq100 sk130 hq2 hk1 d64 sd30 causal",
        "b2 sq100 sk130 hq2 hk1 d64 vnan77 causal",
        "b0 s5 h1 d8",
        "b2 sq5 sk0 h1 d8",
    };
    return list;
}

TEST(Contract_1_14, KeysInE4m3AreAsDequantisedKeysToTheBit) {
    for (const std::string& problem : problems())
        for (const std::string type : {"bf16", "f16", "f32"})
            for (const std::string descale : {"", " descale", " descale1"})
                expect_as_dequantised(problem + " lse " + type + " kv_e4m3" + descale, type == "bf16"  ? FOVEAL_BF16
                                                                                       : type == "f16" ? FOVEAL_F16
                                                                                                       : FOVEAL_F32);
}

TEST(Contract_1_14, AllInE4m3IsAsDequantisedInF32RoundedOnce) {
    for (const std::string& problem : problems())
        for (const std::string type : {" e4m3 descale", " e4m3 out_f16 descale1", " e4m3"})
            expect_as_dequantised(problem + " lse" + type, FOVEAL_F32);
}

// Packed rows of keys have none.
TEST(Contract_1_14, EachRowMayHaveItsOwnDescale) {
    size_t tested = 0;
    for (const std::string& problem : problems()) {
        if (problem.find("klens") != std::string::npos) continue;
        ++tested;
        expect_as_dequantised(problem + " lse bf16 kv_e4m3 descale_rows", FOVEAL_BF16);
        expect_as_dequantised(problem + " lse f16 kv_e4m3 descale_rows", FOVEAL_F16);
        expect_as_dequantised(problem + " lse f32 kv_e4m3 descale_rows", FOVEAL_F32);
        expect_as_dequantised(problem + " lse e4m3 descale_rows", FOVEAL_F32);
    }
    EXPECT_EQ(tested, problems().size() - 2);
}

// Rows that share theirs have the bits of one a head.
TEST(Contract_1_14, DescalesOfRowsThatAreAlikeAreThoseOfAHead) {
    const auto data = run("b2 sq5 sk90 hq4 hk2 d64 bf16 kv_e4m3 descale");
    const std::vector<float> expected = all_rows_of(*data, TensorId::kOut);
    foveal_forward_args args = data->args();
    for (foveal_tensor* t : {&args.k_descale, &args.v_descale}) {
        t->rank = 3;
        t->shape[2] = t->shape[1], t->stride[2] = t->stride[1];
        t->shape[1] = 90, t->stride[1] = 0;
    }
    data->poison_outputs();
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_TRUE(same_bits(all_rows_of(*data, TensorId::kOut), expected));
}

// What is not rounded is, rounded, the result.
TEST(Contract_1_14, OutMayBeF32) {
    for (const std::string type : {"e4m3 descale", "bf16 kv_e4m3 descale", "f16 kv_e4m3"}) {
        const auto data = run("b2 sq3 sk90 hq4 hk2 d64 causal " + type);
        const std::vector<float> expected = all_rows_of(*data, TensorId::kOut);
        std::vector<float> unrounded(expected.size());
        foveal_forward_args args = data->args();
        args.out = foveal::Tensor::packed(unrounded.data(), foveal::DType::f32, {2, 3, 4, 64});
        ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << type << ": " << foveal_last_error();
        std::vector<float> rounded;
        for (size_t sequence = 0; sequence < 2; ++sequence)
            for (size_t head = 0; head < 4; ++head)
                for (size_t row = 0; row < 3; ++row)
                    for (size_t i = 0; i < 64; ++i)
                        rounded.push_back(round_to(data->the_case().out_dtype(),
                                                   unrounded[((sequence * 3 + row) * 4 + head) * 64 + i]));
        expect_same(type, rounded, expected);
    }
}

TEST(Contract_1_14, OneDescaleStandsForAll) {
    const auto shared = run("b3 sq5 sk90 hq4 hk2 d64 e4m3 descale1");
    foveal_forward_args args = shared->args();
    ASSERT_EQ(args.k_descale.stride[0], 0);
    ASSERT_EQ(args.k_descale.stride[1], 0);
    const std::vector<float> expected = all_rows_of(*shared, TensorId::kOut);
    std::vector<std::vector<float>> copies;
    for (foveal_tensor* t : {&args.q_descale, &args.k_descale, &args.v_descale}) {
        copies.emplace_back(6, *static_cast<const float*>(t->data));
        t->data = copies.back().data(), t->stride[0] = 2, t->stride[1] = 1;
    }
    shared->poison_outputs();
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_TRUE(same_bits(all_rows_of(*shared, TensorId::kOut), expected));
}

TEST(Contract_1_14, AnAbsentDescaleIsOne) {
    const auto data = run("b2 sq5 sk90 hq4 hk2 d64 e4m3");
    const std::vector<float> expected = all_rows_of(*data, TensorId::kOut);
    foveal_forward_args args = data->args();
    const float one = 1;
    args.q_descale = foveal::Tensor::strided(&one, foveal::DType::f32, {2, 2}, {0, 0});
    args.k_descale = args.v_descale = args.q_descale;
    data->poison_outputs();
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_TRUE(same_bits(all_rows_of(*data, TensorId::kOut), expected));
}

// ---- What a code of NaN reaches

TEST(Contract_1_14, CodesOfNaN) {
    const auto data = on_cpu("b1 sq40 sk40 h1 d16 bf16 kv_e4m3 causal");
    static_cast<uint8_t*>(data->args().k.data)[30 * 16 + 3] = 0xFF;
    ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK);
    const std::vector<float> out = rows_of(*data, TensorId::kOut, 0, 0);
    for (size_t row = 0; row < 40; ++row) EXPECT_EQ(std::isnan(out[row * 16]), row >= 30) << row;
}

// ---- The error does not grow with the number of keys

TEST(Contract_1_14, TheErrorIsFlatInTheNumberOfKeys) {
    double at_1k = 0;
    for (const int64_t keys : {1024, 2048, 4096, 8192, 16384, 32768}) {
        const std::string text = "b4 sq1 sk" + std::to_string(keys) + " hq8 hk2 d128 e4m3 out_f16 descale";
        const auto data = run(text);
        const Verdict verdict = verify(*data);
        EXPECT_TRUE(verdict.pass) << text << "\n" << verdict.failure;
        std::printf("s_k %6lld: relative error %.3e\n", static_cast<long long>(keys), verdict.norm_error);
        if (keys == 1024) at_1k = verdict.norm_error;
        EXPECT_GT(verdict.norm_error, 0);
        EXPECT_LE(verdict.norm_error, 1.3 * at_1k) << text;
    }
}

// ---- Refusals

using Spoil = std::function<void(foveal_forward_args&)>;

void expect_refused(const std::string& text, const std::vector<std::string>& words, const Spoil& spoil) {
    const auto data = on_cpu(text);
    foveal_forward_args args = data->args();
    spoil(args);
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT) << words[0];
    EXPECT_EQ(foveal_supports(&args), FOVEAL_INVALID_ARGUMENT) << words[0];
    for (const std::string& word : words)
        EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos)
            << foveal_last_error() << " lacks " << word;
    const OutputScan scan = data->scan(TensorId::kOut);
    EXPECT_EQ(scan.poison, scan.elements);
}

TEST(Contract_1_14, TypesThatDoNotGoTogetherAreRefusedByName) {
    const std::string keys = "b2 sq5 sk9 hq4 hk2 d8 bf16 kv_e4m3 descale", all = "b2 sq5 sk9 hq4 hk2 d8 e4m3 descale";
    expect_refused(keys, {"v.dtype", "bf16", "e4m3"}, [](auto& a) { a.v.dtype = FOVEAL_BF16; });
    expect_refused(keys, {"v.dtype", "e4m3", "bf16"}, [](auto& a) { a.k.dtype = FOVEAL_BF16; });
    expect_refused(keys, {"out.dtype", "f16", "q's dtype", "bf16"}, [](auto& a) { a.out.dtype = FOVEAL_F16; });
    expect_refused(keys, {"out.dtype", "e4m3"}, [](auto& a) { a.out.dtype = FOVEAL_E4M3; });
    expect_refused(all, {"out.dtype", "i32", "bf16, f16 or f32"}, [](auto& a) { a.out.dtype = FOVEAL_I32; });
    expect_refused(all, {"out.dtype", "e4m3", "bf16, f16 or f32"}, [](auto& a) { a.out.dtype = FOVEAL_E4M3; });
    expect_refused(all, {"k.dtype", "bf16", "e4m3"}, [](auto& a) { a.k.dtype = FOVEAL_BF16; });
    expect_refused(all, {"k.dtype", "i32", "e4m3"}, [](auto& a) { a.k.dtype = FOVEAL_I32; });
    expect_refused("b2 sq5 sk9 hq4 hk2 d8 e4m3 bias=bh", {"bias.dtype", "e4m3", "bf16, f16 or f32"},
                   [](auto& a) { a.bias.dtype = FOVEAL_E4M3; });
    expect_refused("b2 sq5 sk9 hq4 hk2 d8 bf16 sinks", {"sinks.dtype", "e4m3", "f32"},
                   [](auto& a) { a.sinks.dtype = FOVEAL_E4M3; });
}

TEST(Contract_1_14, DescalesAreRefusedByName) {
    const std::string keys = "b2 sq5 sk9 hq4 hk2 d8 bf16 kv_e4m3 descale", all = "b2 sq5 sk9 hq4 hk2 d8 e4m3 descale";
    expect_refused(all, {"k_descale.shape[1]", "4", "number of k heads", "2"},
                   [](auto& a) { a.k_descale.shape[1] = 4; });
    expect_refused(all, {"v_descale.shape[0]", "3", "batch size", "2"}, [](auto& a) { a.v_descale.shape[0] = 3; });
    expect_refused(all, {"q_descale.rank", "1", "[b, h_k]", "2"}, [](auto& a) { a.q_descale.rank = 1; });
    const auto rank_3 = [](foveal_tensor& t) { t.rank = 3, t.shape[2] = t.stride[2] = 1; };
    expect_refused(all, {"v_descale.shape[1]", "2", "v.shape[1]", "9"}, [&](auto& a) { rank_3(a.v_descale); });
    expect_refused(all, {"q_descale.rank", "3", "[b, h_k]", "2"}, [&](auto& a) { rank_3(a.q_descale); });
    expect_refused("varlen qlens=5 klens=9 hq4 hk2 d8 e4m3 descale", {"k_descale.rank", "3", "[b, h_k]", "2"},
                   [&](auto& a) { rank_3(a.k_descale); });
    expect_refused(all, {"k_descale.dtype", "f16", "f32"}, [](auto& a) { a.k_descale.dtype = FOVEAL_F16; });
    expect_refused(all, {"k_descale.stride[1]", "2", "0"}, [](auto& a) { a.k_descale.stride[1] = 2; });
    expect_refused(keys, {"q_descale is present", "q.dtype is bf16", "e4m3"},
                   [](auto& a) { a.q_descale = a.k_descale; });
    expect_refused("b2 sq5 sk9 hq4 hk2 d8 f16", {"v_descale is present", "v.dtype is f16"}, [](auto& a) {
        static const float one = 1;
        a.v_descale = foveal::Tensor::strided(&one, foveal::DType::f32, {2, 2}, {0, 0});
    });
}

TEST(Contract_1_14, DescalesLieApartFromResults) {
    const auto data = on_cpu("b2 sq5 sk9 hq4 hk2 d8 e4m3 descale");
    foveal_forward_args args = data->args();
    args.k_descale.data = args.out.data;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("out overlaps k_descale"), std::string::npos)
        << foveal_last_error();
    args = data->args();
    args.v_descale.data = nullptr;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    EXPECT_NE(std::string(foveal_last_error()).find("v_descale.data is NULL"), std::string::npos);
}

TEST(Contract_1_14, Sm90RefusesByName) {
    for (const auto& [text, word] : {std::pair{"b2 sq5 sk9 hq4 hk2 d24 bf16 kv_e4m3", "multiples of 16"},
                                     {"b2 sq5 sk9 hq4 hk2 d512 bf16 kv_e4m3", "under few rows of q"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 softcap30", "softcap"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 alibi", "alibi_slopes"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 bias=bh", "bias"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 mask=bh", "mask"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 qoff=1,2 causal", "query_offset"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 tree causal", "tree_mask"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 page16", "block_table"},
                                     {"b2 sq9 klens=9,7 hq4 hk2 d64 e4m3", "different forms"},
                                     {"b2 sq5 sk9 hq4 hk2 d64 e4m3 descale_rows", "k_descale has a value for each row"},
                                     {"b2 sq5 sk9 hq4 hk2 d256 e4m3", "256"}}) {
        const foveal_forward_args args = shape_args(parse_case(text), FOVEAL_BACKEND_SM90);
        EXPECT_EQ(foveal_supports(&args), FOVEAL_UNSUPPORTED) << text;
        EXPECT_NE(std::string(foveal_last_error()).find(word), std::string::npos) << foveal_last_error();
    }
}

}  // namespace
}  // namespace foveal_testing
