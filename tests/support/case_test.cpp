// The text form of cases, and what is derived from it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "tests/support/case.hpp"
#include "tests/support/case_data.hpp"

namespace foveal_testing {
namespace {

TEST(Case, ReadsEveryToken) {
    const Case c = parse_case(
        "b2 sq113 sk203 hq32 hk8 d128 dv64 f16 left256 right3 topleft lse scale0.1 used_q=113,5 used_k=0,203 seed7 "
        "sd10 "
        "sink60@0 sink-20@mid grow2.5 flat vmax vnan37 pad bhsd");
    EXPECT_EQ(c.batch, 2);
    EXPECT_EQ(c.rows_q, 113);
    EXPECT_EQ(c.rows_k, 203);
    EXPECT_EQ(c.heads_q, 32);
    EXPECT_EQ(c.heads_k, 8);
    EXPECT_EQ(c.group(), 4);
    EXPECT_EQ(c.head_dim, 128);
    EXPECT_EQ(c.head_dim_v, 64);
    EXPECT_EQ(c.dtype, FOVEAL_F16);
    EXPECT_EQ(c.window_left, 256);
    EXPECT_EQ(c.window_right, 3);
    EXPECT_TRUE(c.top_left && c.lse && c.flat && c.vmax && c.padded && c.bhsd);
    EXPECT_EQ(c.scale, 0.1f);
    EXPECT_EQ(c.used_q(1), 5);
    EXPECT_EQ(c.used_k(0), 0);
    EXPECT_EQ(c.seed, 7u);
    EXPECT_EQ(c.logit_sd, 10.0);
    ASSERT_EQ(c.sink_keys.size(), 2u);
    EXPECT_EQ(c.sink_keys[1], (SinkKey{-20, SinkKey::Position::kMiddle}));
    EXPECT_EQ(c.grow_nats, 2.5);
    EXPECT_EQ(c.nan_value, 37);
}

TEST(Case, ReadsEveryScoreOption) {
    const Case c =
        parse_case("b2 sq5 sk9 hq4 hk2 d8 f16 chunk4 softcap30 alibi_b sinks-2.5 bias_f32=1h bias_inf mask=b1 lse");
    EXPECT_EQ(c.chunk, 4);
    EXPECT_EQ(c.softcap, 30.0f);
    EXPECT_EQ(c.alibi, Alibi::kBySequenceAndHead);
    EXPECT_EQ(c.sink_logit, -2.5f);
    EXPECT_EQ(c.bias, (ScoreMatrix{false, true}));
    EXPECT_EQ(c.bias_dtype(), FOVEAL_F32);
    EXPECT_TRUE(c.bias_inf);
    EXPECT_EQ(c.mask, (ScoreMatrix{true, false}));
    for (const char* text :
         {"b2 sq5 sk9 hq4 hk2 d8 f16 full chunk4 lse softcap30 alibi_b sinks-2.5 bias_f32=1h bias_inf mask=b1",
          "b1 s5 h4 d8 bf16 causal softcap0.5 alibi sinks bias=bh mask=11", "b1 s5 h4 d8 bf16 full sink5@0 pad qkv",
          "varlen qlens=3,4 klens=3,4 h2 d8 f32 full alibi sinks2 qkv"}) {
        EXPECT_EQ(to_text(parse_case(text)), text);
    }
}

TEST(Case, ReadsWhatIsInE4m3) {
    const Case all = parse_case("b2 s5 h4 d8 e4m3 descale bias=bh"), keys = parse_case("b2 s5 h4 d8 f16 kv_e4m3");
    EXPECT_EQ(all.keys_dtype(), FOVEAL_E4M3);
    EXPECT_EQ(all.out_dtype(), FOVEAL_BF16);
    EXPECT_EQ(all.bias_dtype(), FOVEAL_BF16);
    EXPECT_EQ(all.computed_dtype(), FOVEAL_F32);
    EXPECT_TRUE(has_tensor(all, TensorId::kQDescale) && has_tensor(all, TensorId::kVDescale));
    EXPECT_EQ(keys.dtype, FOVEAL_F16);
    EXPECT_EQ(keys.keys_dtype(), FOVEAL_E4M3);
    EXPECT_EQ(keys.computed_dtype(), FOVEAL_F16);
    EXPECT_FALSE(has_tensor(keys, TensorId::kKDescale));
    EXPECT_FALSE(has_tensor(parse_case("b2 s5 h4 d8 f16 kv_e4m3 descale1"), TensorId::kQDescale));
    for (const char* text : {"b2 s5 h4 d8 e4m3 full", "b2 s5 h4 d8 e4m3 out_f16 descale1 causal",
                             "b2 s5 h4 d8 bf16 kv_e4m3 descale full lse", "b2 s5 h4 d8 e4m3 descale_rows full"})
        EXPECT_EQ(to_text(parse_case(text)), text);
    for (const char* text :
         {"s5 h1 e4m3 bf16", "s5 h1 e4m3 kv_e4m3", "s5 h1 out_f16", "s5 h1 descale", "s5 h1 kv_e4m3 qkv",
          "s5 h1 e4m3 descale descale1", "varlen qlens=5 klens=5 h1 e4m3 descale_rows"})
        EXPECT_THROW(parse_case(text), CaseError) << text;
}

TEST(Case, ReadsWhereKeysLieAndWhereQueriesStand) {
    const Case c = parse_case("b2 sq5 sk70 hq4 hk2 d8 page16 csr pool order7 qoff=5,-3 tree used_k=70,0");
    EXPECT_EQ(c.page_size, 16);
    EXPECT_TRUE(c.lists_pages && c.pool && c.tree);
    EXPECT_EQ(c.page_order, 7);
    EXPECT_EQ(c.offset_of(1), -3);
    EXPECT_FALSE(parse_case("b2 s5 h1").offset_of(0).has_value());
    const Case varlen = parse_case("varlen qlens=3,0 sk100 h1 d8"), packed_keys = parse_case("b2 sq3 klens=5,2 h1 d8");
    EXPECT_TRUE(varlen.varlen && !varlen.varlen_k && packed_keys.varlen_k && !packed_keys.varlen);
    EXPECT_EQ(varlen.length_k(1), 100);
    EXPECT_EQ(packed_keys.rows_k, 7);
    for (const char* text : {"b2 sq5 sk70 hq4 hk2 d8 bf16 full used_k=70,0 page16 csr pool order7 qoff=5,-3 tree",
                             "varlen qlens=3,0 sk100 h1 d8 bf16 full used_k=5,6 page1",
                             "varlen qlens=3,0 sk100 h1 d8 bf16 full", "b2 sq3 klens=5,2 h1 d8 bf16 causal tree"})
        EXPECT_EQ(to_text(parse_case(text)), text);
    for (const char* text : {"b2 s5 h1 csr", "b2 s5 h1 page0", "b2 s5 h1 page4 qkv", "b2 s5 h1 qoff=1",
                             "b2 sq5 klens=3,4 h1 page4", "b2 s5 h1 d8 dv16 page4 pool", "b2 s5 h1 qoff=1,2 topleft",
                             "b2 s5 klens=5,5 h1", "varlen qlens=3 h1", "b2 sq5 klens=3,4 h1 mask=bh"})
        EXPECT_THROW(parse_case(text), CaseError) << text;
}

TEST(Case, Defaults) {
    const Case c = parse_case("s1024 h16");
    EXPECT_EQ(c.batch, 1);
    EXPECT_EQ(c.rows_q, 1024);
    EXPECT_EQ(c.rows_k, 1024);
    EXPECT_EQ(c.heads_k, 16);
    EXPECT_EQ(c.head_dim, 128);
    EXPECT_EQ(c.head_dim_v, 128);
    EXPECT_EQ(c.dtype, FOVEAL_BF16);
    EXPECT_EQ(c.window_right, FOVEAL_UNLIMITED);
    EXPECT_FALSE(c.scale.has_value());
    EXPECT_EQ(to_text(c), "b1 s1024 h16 d128 bf16 full");
}

TEST(Case, Varlen) {
    const Case c = parse_case("varlen qlens=113,64,0 klens=203,64,5 hq4 hk2 d64 causal");
    EXPECT_EQ(c.batch, 3);
    EXPECT_EQ(c.rows_q, 177);
    EXPECT_EQ(c.first_row_q(2), 177);
    EXPECT_EQ(c.first_row_k(1), 203);
    EXPECT_EQ(c.length_k(2), 5);
    EXPECT_EQ(to_text(c), "varlen qlens=113,64,0 klens=203,64,5 hq4 hk2 d64 bf16 causal");
    EXPECT_EQ(parse_case("varlen qlens= klens= h1").batch, 0);
}

TEST(Case, ReadsDropout) {
    for (const char* text :
         {"b1 s5 h4 d8 bf16 full dropout0.1", "b1 s5 h4 d8 bf16 full dropout0.5 dropstate=3,18446744073709551615"})
        EXPECT_EQ(to_text(parse_case(text)), text);
    EXPECT_EQ(parse_case("s5 h4 dropout0.5 dropstate=3,18446744073709551615").dropout_state(),
              (std::array<uint64_t, 2>{3, ~uint64_t{0}}));
    EXPECT_NE(parse_case("s5 h4 dropout0.5").dropout_state(), parse_case("s5 h4 dropout0.5 seed2").dropout_state());
}

TEST(Case, WhatIsNoCaseIsSaidSo) {
    const std::pair<const char*, const char*> wrong[] = {
        {"s128", "h or hq"},
        {"h4", "sk"},
        {"s128 h4 nonsense", "'nonsense'"},
        {"s12x h4", "'s12x'"},
        {"s-1 h4", "'s-1'"},
        {"s128 h4 d", "'d'"},
        {"s128 h4 b2 b3", "'b3'"},
        {"s128 h4 bf16 f16", "two element types"},
        {"s128 h4 full causal", "full"},
        {"s128 sq64 h4", "both sq and sk"},
        {"s128 hq4 hk0", "hk"},
        {"s128 h4 sink60", "'sink60'"},
        {"s128 h4 sink60@9", "'sink60@9'"},
        {"s128 h4 sinks60@0", "'sinks60@0'"},
        {"s128 h4 softcap", "'softcap'"},
        {"s128 h4 bias", "'bias'"},
        {"s128 h4 bias=hb", "'bias=hb'"},
        {"s128 h4 bias_f16=bh", "'bias_f16=bh'"},
        {"s128 h4 bias=bh bias_f32=bh", "bias_f32"},
        {"s128 h4 bias_inf", "'bias_inf'"},
        {"s128 h4 mask=b", "'mask=b'"},
        {"s128 h4 alibi alibi_b", "alibi_b"},
        {"s128 h4 dropout1", "'dropout'"},
        {"s128 h4 dropout0.1 dropstate=1", "'dropstate=1'"},
        {"s128 h4 dropstate=1,2", "'dropstate'"},
        {"varlen qlens=1 klens=1 h4 mask=bh", "dense"},
        {"varlen qlens=1 klens=1 h4 bias=bh", "dense"},
        {"sq5 sk6 h4 qkv", "qkv"},
        {"s5 h4 d8 dv16 qkv", "qkv"},
        {"varlen qlens=1 h4", "klens"},
        {"varlen qlens=1,2 klens=1 h4", "klens"},
        {"varlen s5 qlens=1 klens=1 h4", "lengths"},
        {"s128 h4 used_k=1,2", "used_k"},
        {"s99999999999999999999 h4", "'s99999999999999999999'"},
    };
    for (const auto& [text, named] : wrong) {
        try {
            parse_case(text);
            ADD_FAILURE() << "accepted: " << text;
        } catch (const CaseError& error) {
            EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << text << ": " << error.what();
        }
    }
}

// pairs counted one by one
double counted_pairs(const Case& c) {
    double pairs = 0;
    for (int64_t n = 0; n < c.batch; ++n) {
        const int64_t len_q = c.used_q(n), len_k = c.used_k(n), off = c.top_left ? 0 : len_k - len_q;
        for (int64_t i = 0; i < len_q; ++i) {
            for (int64_t j = 0; j < len_k; ++j) {
                const bool left = c.window_left == FOVEAL_UNLIMITED || j >= i + off - c.window_left;
                const bool right = c.window_right == FOVEAL_UNLIMITED || j <= i + off + c.window_right;
                const bool chunk = c.chunk == 0 || (i + off >= 0 && (i + off) / c.chunk == j / c.chunk);
                pairs += left && right && chunk;
            }
        }
    }
    return pairs;
}

TEST(Case, CountsVisiblePairsFlopsAndBytes) {
    for (const char* text :
         {"b2 sq5 sk9 h3 d8 causal", "b2 sq9 sk5 h3 d8 causal", "s7 h1 d8 left2 right1", "sq7 sk11 h1 d8 left2 topleft",
          "varlen qlens=4,0,6 klens=5,3,0 h2 d8 causal", "b2 s9 h2 d8 causal used_q=3,9 used_k=9,2",
          "sq9 sk13 h1 d8 chunk4", "sq13 sk9 h1 d8 chunk4 causal", "sq13 sk9 h1 d8 chunk3 left1 topleft"}) {
        const Case c = parse_case(text);
        EXPECT_EQ(c.visible_pairs(), counted_pairs(c)) << text;
    }
    const Case c = parse_case("b2 sq10 sk20 hq4 hk2 d8 dv16 f32 full lse");
    EXPECT_EQ(c.flops(), 2.0 * (8 + 16) * (2 * 10 * 20) * 4);
    EXPECT_EQ(c.min_bytes(), 4.0 * (2 * 10 * 4 * (8 + 16) + 2 * 20 * 2 * (8 + 16) + 2 * 10 * 4));
}

TEST(CaseData, InputsHaveTheStatisticsThatTheTokensAskFor) {
    const Case c = parse_case("sq64 sk512 h1 d64 f32 sd10 sink60@mid");
    const auto data = make_case_data(c, FOVEAL_BACKEND_CPU);
    std::vector<float> q(64 * 64), k(512 * 64);
    data->read(TensorId::kQ, 0, 0, 0, 64, q.data());
    data->read(TensorId::kK, 0, 0, 0, 512, k.data());
    double sum = 0, squares = 0;
    for (size_t i = 0; i < 64; ++i) {
        for (size_t j = 0; j < 512; ++j) {
            double x = 0;
            for (size_t n = 0; n < 64; ++n)
                x += static_cast<double>(q[i * 64 + n]) * static_cast<double>(k[j * 64 + n]);
            x /= 8;
            if (j == 256) {
                EXPECT_NEAR(x, 60, 1e-3) << "the sink";
                continue;
            }
            sum += x;
            squares += x * x;
        }
    }
    const double count = 64 * 511;
    EXPECT_NEAR(sum / count, 0, 0.3);
    EXPECT_NEAR(std::sqrt(squares / count), 10, 0.5);
}

TEST(CaseData, PaddingIsNaNAndUnusedRowsAreNaN) {
    const Case c = parse_case("b2 sq3 sk5 h2 d8 f32 pad used_k=2,5");
    const auto data = make_case_data(c, FOVEAL_BACKEND_CPU);
    const foveal_tensor& k = data->args().k;
    const auto* values = static_cast<const float*>(k.data);
    EXPECT_GT(k.stride[1], 2 * 8);
    EXPECT_FALSE(std::isnan(values[1 * k.stride[1] + 7])) << "row 1 is used";
    EXPECT_TRUE(std::isnan(values[2 * k.stride[1]])) << "row 2 is not";
    EXPECT_TRUE(std::isnan(values[8])) << "past the channels";
    EXPECT_TRUE(std::isnan(values[-1])) << "before the view";
    EXPECT_FALSE(std::isnan(values[k.stride[0] + 4 * k.stride[1]])) << "sequence 1 uses row 4";
    const OutputScan scan = data->scan(TensorId::kOut);
    EXPECT_EQ(scan.poison, scan.elements);
}

TEST(CaseData, ValuesOfScoresBeyondTheUsedOnesArePoison) {
    const auto data = make_case_data(parse_case("b2 sq3 sk5 hq4 hk2 d8 bf16 pad bias=b1 mask=1h used_q=2,3 used_k=4,2"),
                                     FOVEAL_BACKEND_CPU);
    std::vector<float> bias(5), mask(5);
    data->read(TensorId::kBias, 1, 3, 2, 1, bias.data());
    EXPECT_FALSE(std::isnan(bias[1]));
    EXPECT_TRUE(std::isnan(bias[2])) << "sequence 1 uses 2 keys";
    data->read(TensorId::kBias, 0, 0, 2, 1, bias.data());
    EXPECT_TRUE(std::isnan(bias[0])) << "sequence 0 uses 2 queries";
    data->read(TensorId::kMask, 1, 0, 2, 1, mask.data());
    EXPECT_EQ(mask[4], 1) << "no sequence uses key 4";
    EXPECT_EQ(data->args().bias.shape[1], 1);
    EXPECT_EQ(data->args().mask.shape[0], 1);
    EXPECT_GT(data->args().bias.stride[2], 5);
}

TEST(CaseData, MasksAndBiasesHideWhatTheySay) {
    const auto data =
        make_case_data(parse_case("sq400 sk64 h1 d8 f32 bias_f32=bh bias_inf mask=bh"), FOVEAL_BACKEND_CPU);
    for (const TensorId id : {TensorId::kBias, TensorId::kMask}) {
        int empty = 0, single = 0, hidden = 0;
        std::vector<float> row(64);
        for (int64_t i = 0; i < 400; ++i) {
            data->read(id, 0, 0, i, 1, row.data());
            const auto seen = std::count_if(row.begin(), row.end(),
                                            [&](float x) { return id == TensorId::kBias ? std::isfinite(x) : x == 1; });
            empty += seen == 0;
            single += seen == 1;
            hidden += 64 - static_cast<int>(seen);
        }
        EXPECT_NEAR(empty, 400 / 16, 15) << tensor_name(id);
        EXPECT_GT(single, 5) << tensor_name(id);
        EXPECT_NEAR(hidden, 400 * 64 * 3 / 8, 400 * 64 / 10) << tensor_name(id);
    }
}

TEST(CaseData, PackedInputsAreViewsOfOneBuffer) {
    for (const std::string memory : {"qkv", "qkv pad", "qkv bhsd"}) {
        const auto packed = make_case_data(parse_case("b2 s5 hq4 hk2 d8 f32 " + memory), FOVEAL_BACKEND_CPU);
        const auto apart = make_case_data(parse_case("b2 s5 hq4 hk2 d8 f32"), FOVEAL_BACKEND_CPU);
        const auto* q = static_cast<const float*>(packed->args().q.data);
        EXPECT_EQ(packed->args().k.data, q + 4 * packed->args().q.stride[2]) << memory;
        EXPECT_EQ(packed->args().v.data, q + 6 * packed->args().q.stride[2]) << memory;
        for (const TensorId id : {TensorId::kQ, TensorId::kK, TensorId::kV}) {
            std::vector<float> one(40), other(40);
            packed->read(id, 1, 1, 0, 5, one.data());
            apart->read(id, 1, 1, 0, 5, other.data());
            EXPECT_EQ(one, other) << memory << " " << tensor_name(id);
        }
    }
}

TEST(CaseData, SlopesAreThoseOfThePaper) {
    const auto slopes = [](const std::string& text, int64_t sequence, int64_t heads) {
        const auto data = make_case_data(parse_case(text), FOVEAL_BACKEND_CPU);
        std::vector<float> values(static_cast<size_t>(heads));
        for (int64_t h = 0; h < heads; ++h)
            data->read(TensorId::kAlibi, sequence, h, 0, 1, &values[static_cast<size_t>(h)]);
        return values;
    };
    EXPECT_EQ(slopes("s5 h4 d8 alibi", 0, 4), (std::vector<float>{0x1p-2f, 0x1p-4f, 0x1p-6f, 0x1p-8f}));
    EXPECT_EQ(slopes("s5 h3 d8 alibi", 0, 3), (std::vector<float>{0x1p-4f, 0x1p-8f, 0x1p-2f}));
    EXPECT_NE(slopes("b2 s5 h4 d8 alibi_b", 0, 4), slopes("b2 s5 h4 d8 alibi_b pad", 1, 4));
}

TEST(CaseData, SeedsDiffer) {
    const auto data = make_case_data(parse_case("s4 h1 d8 f32"), FOVEAL_BACKEND_CPU);
    std::vector<float> one(32), two(32), again(32);
    data->read(TensorId::kQ, 0, 0, 0, 4, one.data());
    data->refill(2);
    data->read(TensorId::kQ, 0, 0, 0, 4, two.data());
    data->refill(1);
    data->read(TensorId::kQ, 0, 0, 0, 4, again.data());
    EXPECT_NE(one, two);
    EXPECT_EQ(one, again);
}

}  // namespace
}  // namespace foveal_testing
