// What never reaches a result of the sm90 backend, and what never changes its bits (contract 1.6 and 1.7).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/oracle.hpp"
#include "tests/support/plan_text.hpp"

namespace foveal_testing {
namespace {

// ---- 1.6 Isolation

struct RowRange {
    int64_t first, last;
};

// All bytes of the rows outside [keep.first, keep.last) of a packed tensor become `byte`.
void ruin_neighbours(const foveal_tensor& tensor, RowRange keep, int byte) {
    const int64_t row_bytes = tensor.stride[0] * 2;
    auto* data = static_cast<std::byte*>(tensor.data);
    require_cuda(cudaMemset(data, byte, static_cast<size_t>(keep.first * row_bytes)), "cudaMemset");
    require_cuda(
        cudaMemset(data + keep.last * row_bytes, byte, static_cast<size_t>((tensor.shape[0] - keep.last) * row_bytes)),
        "cudaMemset");
}

std::vector<float> rows_of(CaseData& data, TensorId id, int64_t sequence, int64_t head) {
    const Case& c = data.the_case();
    std::vector<float> rows(static_cast<size_t>(c.used_q(sequence) * (id == TensorId::kLse ? 1 : c.head_dim_v)));
    data.read(id, sequence, head, 0, c.used_q(sequence), rows.data());
    return rows;
}

void expect_same_sequence(CaseData& a, int64_t sequence_a, CaseData& b, int64_t sequence_b) {
    a.synchronize();
    b.synchronize();
    for (int64_t head = 0; head < a.the_case().heads_q; ++head) {
        for (const TensorId id : {TensorId::kOut, TensorId::kLse}) {
            if (id == TensorId::kLse && !a.the_case().lse) continue;
            const std::vector<float> of_a = rows_of(a, id, sequence_a, head), of_b = rows_of(b, id, sequence_b, head);
            ASSERT_EQ(of_a.size(), of_b.size());
            EXPECT_EQ(std::memcmp(of_a.data(), of_b.data(), of_a.size() * sizeof(float)), 0)
                << tensor_name(id) << " head " << head << " of " << to_text(b.the_case());
        }
    }
}

// Bytes of NaN, of large numbers (3 or 48, 203 or 1.5e16 in f16 or bf16), and in bf16 of some whose products are
// infinite: NaN alone passes none of the limits by which a warp decides for all its rows.
TEST_F(Gpu, NeighboursOfAVarlenSequenceNeverMatter) {
    for (const std::string tail :
         {" hq4 hk2 d128 bf16 lse", " hq4 hk2 d128 bf16 causal lse", " hq4 hk2 d64 f16 causal lse", " h3 d64 bf16 lse",
          " h2 d256 bf16 causal", " h2 d128 bf16 causal", " h2 d64 bf16 softcap30",
          " hq4 hk2 d128 bf16 causal softcap30", " h2 d128 f16 softcap30 alibi", " h2 d512 bf16 softcap30"}) {
        for (const int64_t middle : {1, 63, 64, 70, 127, 128, 130, 257}) {
            const std::string length = std::to_string(middle);
            const std::string text = "varlen qlens=33," + length + ",9 klens=65," + length + ",130" + tail;
            const auto clean = on_gpu(text);
            run(*clean);
            for (const int byte : {0xFF, 0x42, 0x5A, 0x7F}) {
                const auto ruined = on_gpu(text);
                ruin_neighbours(ruined->args().q, {33, 33 + middle}, byte);
                ruin_neighbours(ruined->args().k, {65, 65 + middle}, byte);
                ruin_neighbours(ruined->args().v, {65, 65 + middle}, byte);
                run(*ruined);
                SCOPED_TRACE(byte);
                expect_same_sequence(*clean, 1, *ruined, 1);
            }
        }
    }
}

// Of a dense or a varlen k or v, in memory order [.., s, h, d] without padding: all bytes of the rows of a sequence
// that none of its queries sees become `byte`.
void ruin_unseen(const Case& c, const foveal_tensor& tensor, int64_t sequence, int byte) {
    const KeyInterval seen = keys_seen_by_any(c, sequence);
    const int64_t row_bytes = tensor.stride[tensor.rank - 3] * 2;
    auto* data = static_cast<std::byte*>(tensor.data) + c.first_row_k(sequence) * row_bytes;
    if (!c.varlen) data += sequence * tensor.stride[0] * 2;
    const auto ruin = [&](int64_t first, int64_t last) {
        require_cuda(cudaMemset(data + first * row_bytes, byte, static_cast<size_t>((last - first) * row_bytes)),
                     "cudaMemset");
    };
    ruin(0, seen.first);
    ruin(seen.last, c.length_k(sequence));
}

// The tail of a static cache, and what a window or a chunk leaves out before and after. That no result is NaN is seen
// by the suites, whose unseen keys hold NaN and infinities; here every bit has to stay.
TEST_F(Gpu, KeysThatNoRowSeesNeverMatter) {
    for (const std::string tail :
         {" d128 bf16", " d64 f16", " d256 bf16", " d192 dv128 f16", " d512 bf16", " d128 bf16 softcap30",
          " d128 f16 softcap30 sd10", " d64 bf16 softcap30", " d128 bf16 alibi", " d64 f16 softcap30 alibi sinks",
          " d128 bf16 bias=bh", " d128 bf16 mask=bh softcap30"})
        for (const std::string mask : {" causal topleft", " left33 causal", " chunk100", " left20 right30 topleft"})
            for (const std::string shape : {"b2 sq10 sk40 hq4 hk2", "b2 sq70 sk1000 h2", "b1 sq300 sk900 hq4 hk1",
                                            "varlen qlens=5,70,0,300,129 klens=64,1000,9,130,500 hq4 hk2"}) {
                if (shape.starts_with("varlen") && tail.find('=') != std::string::npos) continue;
                const std::string text = shape + tail + mask + " lse";
                const auto data = on_gpu(text);
                std::vector<std::byte> expected;
                for (const int byte : {0x00, 0xFF, 0x42, 0x5A, 0x7F}) {
                    for (int64_t sequence = 0; sequence < data->the_case().batch; ++sequence) {
                        ruin_unseen(data->the_case(), data->args().k, sequence, byte);
                        ruin_unseen(data->the_case(), data->args().v, sequence, byte);
                    }
                    data->poison_outputs();
                    run(*data);
                    if (byte == 0x00)
                        expected = outputs(*data);
                    else
                        EXPECT_TRUE(outputs(*data) == expected) << text << ", bytes " << byte;
                }
            }
}

// ---- 1.7 Repeatability

TEST_F(Gpu, TheSameBitsOnEveryRun) {
    for (const std::string text :
         {"b3 sq1000 sk1300 hq8 hk2 d128 bf16 causal lse", "b128 s128 hq32 hk8 d128 bf16 causal",
          "b1 s4096 h16 d64 f16 full lse", "b1 s2000 h4 d128 bf16 causal sd30",
          "varlen qlens=5,0,1300,70 klens=64,9,3000,1 h4 d64 bf16 causal lse"}) {
        const std::vector<std::byte> first = outputs_of(text);
        for (int again = 0; again < 3; ++again) EXPECT_EQ(outputs_of(text), first) << text;
    }
}

// The first sequence of a batch draws the same inputs whatever follows it.
TEST_F(Gpu, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d128 bf16 causal lse", " hq4 hk2 d64 f16 lse", " h1 d128 bf16 lse",
                                   " hq8 hk1 d64 bf16 causal lse sd20"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq1031 sk1503", "b9 sq1031 sk1503"},
              {"b1 sq1 sk5000", "b9 sq1 sk5000"},
              {"b1 s64", "b9 s64"},
              {"varlen qlens=631 klens=903",
               "varlen qlens=631,5,0,300,64,9,1,128,77 klens=903,9,4,0,64,500,1,128,300"}}) {
            const auto one = on_gpu(alone + tail), nine = on_gpu(together + tail);
            run(*one);
            run(*nine);
            expect_same_sequence(*one, 0, *nine, 0);
        }
    }
}

// Where rows of a tile decide together how they are rounded, whether heads share a tile must not follow from the batch
// (sm90/forward/plan.cpp); nor from how its tiles are dealt out, which long sequences change.
TEST_F(Gpu, ASequenceDoesNotDependOnItsBatchUnderOptions) {
    for (const std::string heads : {" hq12 hk2", " hq16 hk2", " hq8 hk1", " hq24 hk8", " hq6 hk2", " h4"})
        for (const std::string tail :
             {" d128 bf16 softcap50 causal lse", " d128 f16 softcap30 sd10", " d64 bf16 softcap30 sd4 lse",
              " d256 bf16 softcap50 causal", " d128 bf16 alibi causal lse", " d64 f16 alibi left40 causal"})
            for (const int length : {20, 200}) {
                const std::string first = std::to_string(length);
                const std::string few = first + ",5,0,300";
                std::string many = first, balanced = first;
                for (int i = 0; i < 60; ++i) many += ",33";
                for (int i = 0; i < 12; ++i) balanced += ",2048";
                const auto one = on_gpu("varlen qlens=" + first + " klens=" + first + heads + tail);
                run(*one);
                for (const std::string& lengths : {few, many, balanced}) {
                    const auto all = on_gpu("varlen qlens=" + lengths + " klens=" + lengths + heads + tail);
                    run(*all);
                    expect_same_sequence(*one, 0, *all, 0);
                }
                const std::string shape = " sq" + first + " sk300" + heads + tail;
                const auto dense = on_gpu("b1" + shape);
                run(*dense);
                for (const std::string batch : {"b3", "b70"}) {
                    const auto all = on_gpu(batch + shape);
                    run(*all);
                    expect_same_sequence(*dense, 0, *all, 0);
                }
            }
}

// A varlen batch of equal lengths is the dense batch.
TEST_F(Gpu, VarlenOfEqualLengthsGivesTheDenseResult) {
    for (const std::string tail : {" hq4 hk2 d128 bf16 causal lse", " h3 d64 f16 lse"}) {
        for (const auto& [dense_lengths, lengths] :
             {std::pair<std::string, std::string>{"b3 sq200 sk300", "varlen qlens=200,200,200 klens=300,300,300"},
              {"b3 sq2000 sk3500", "varlen qlens=2000,2000,2000 klens=3500,3500,3500"}}) {
            const auto dense = on_gpu(dense_lengths + tail), packed = on_gpu(lengths + tail);
            run(*dense);
            run(*packed);
            for (int64_t sequence = 0; sequence < 3; ++sequence)
                expect_same_sequence(*dense, sequence, *packed, sequence);
        }
    }
}

// One query head of a call, with its own KV head.
foveal_forward_args one_head(const foveal_forward_args& all, int64_t head, int64_t group) {
    foveal_forward_args args = all;
    const auto narrow = [](foveal_tensor& t, int32_t dimension, int64_t index, int64_t element_bytes) {
        if (t.data == nullptr) return;
        t.data = static_cast<std::byte*>(t.data) + index * t.stride[dimension] * element_bytes;
        t.shape[dimension] = 1;
    };
    const int32_t heads = all.q.rank - 2;  // [b, s, h, d] or [total, h, d]
    narrow(args.q, heads, head, 2);
    narrow(args.out, heads, head, 2);
    narrow(args.k, heads, head / group, 2);
    narrow(args.v, heads, head / group, 2);
    narrow(args.lse, all.lse.rank - 2, head, 4);
    narrow(args.sinks, 0, head, 4);
    return args;
}

// Tiles that hold rows of several heads give what each head gets alone. (But under softcap and ALiBi, where the form of
// a block follows from all rows of its tile; and with more rows than those of which the heads that share a KV head
// decide whether they decode.)
TEST_F(Gpu, PackedHeadsGiveTheSameBits) {
    int packed_cases = 0;
    for (const std::string heads :
         {" hq8 hk4", " hq8 hk2", " hq16 hk2", " hq16 hk1", " hq6 hk2", " hq5 hk1", " hq14 hk2", " hq9 hk1"})
        for (const std::string tail :
             {" d128 bf16 full lse sinks", " d128 bf16 causal", " d128 f16 causal lse sd20 pad",
              " d64 bf16 causal sinks", " d64 f16 right5 lse bhsd", " d80 bf16 full qkv", " d192 dv128 bf16 causal",
              " d256 bf16 causal lse", " d256 f16 full sinks", " d512 bf16 causal", " d128 bf16 causal topleft lse",
              " d64 bf16 left9 causal", " d128 f16 left100 right3 lse", " d256 bf16 left63 causal sinks"})
            for (const std::string shape : {"b2 s17", "b3 sq40 sk300", "b2 s64", "b2 sq130 sk77", "b3 s200",
                                            "b1 sq1000 sk1100", "b3 sq70 sk500 used_q=0,70,33 used_k=500,2,77",
                                            "varlen qlens=17,0,33,200,64,1300,70 klens=400,9,33,300,64,1300,0"}) {
                // One buffer needs equal lengths; neither layout is for varlen.
                if (tail.ends_with("qkv") && !shape.starts_with("b2 s17") && !shape.starts_with("b2 s64")) continue;
                if (tail.ends_with("bhsd") && shape.starts_with("varlen")) continue;
                const auto data = on_gpu(shape + heads + tail);
                packed_cases += plan_of(shape + heads + tail).find("rows of one head;") == std::string::npos;
                run(*data);
                const std::vector<std::byte> packed = outputs(*data);
                data->poison_outputs();
                const Case& c = data->the_case();
                for (int64_t head = 0; head < c.heads_q; ++head) {
                    const foveal_forward_args args = one_head(data->args(), head, c.group());
                    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
                }
                EXPECT_TRUE(outputs(*data) == packed) << to_text(c);
            }
    EXPECT_GT(packed_cases, 400);
}

}  // namespace
}  // namespace foveal_testing
