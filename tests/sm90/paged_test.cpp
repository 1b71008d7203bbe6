// Keys and values in pages, forms that differ, offsets and trees (contract 1.3, 1.11) on the sm90 backend. Few rows are
// the decode kernel's, all else the forward's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/gpu_fixture.hpp"
#include "tests/support/paged_cases.hpp"
#include "tests/support/plan_text.hpp"

namespace foveal_testing {
namespace {

void expect_right(const std::string& text) {
    const CheckResult result = check_case(parse_case(text), kSm90);
    EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
}

std::vector<float> rows_of(CaseData& data, TensorId id, int64_t sequence) {
    const Case& c = data.the_case();
    const int64_t channels = id == TensorId::kLse ? 1 : c.head_dim_v;
    const auto size = static_cast<size_t>(c.used_q(sequence) * channels);
    std::vector<float> rows(size * static_cast<size_t>(c.heads_q));
    if (id == TensorId::kLse && !c.lse) return {};
    for (int64_t head = 0; head < c.heads_q; ++head)
        data.read(id, sequence, head, 0, c.used_q(sequence), rows.data() + static_cast<size_t>(head) * size);
    return rows;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::unique_ptr<CaseData> run_case(const std::string& text) {
    auto data = on_gpu(text);
    run(*data);
    data->synchronize();
    return data;
}

// The same rows of sequence i of both.
void expect_same_sequence(CaseData& a, CaseData& b, int64_t i) {
    for (const TensorId id : {TensorId::kOut, TensorId::kLse})
        EXPECT_TRUE(same_bits(rows_of(a, id, i), rows_of(b, id, i))) << tensor_name(id) << " of sequence " << i << "\n"
                                                                     << to_text(a.the_case()) << "\n"
                                                                     << to_text(b.the_case());
}

// ---- the grid

const PagedChoices kChoices{{1, 3, 8, 16, 17, 24, 32, 48, 64, 97, 128, 256},
                            {1, 200, 517, 1300},
                            {1, 1, 2, 3, 5, 8, 16, 70},
                            {0, 1, 16, 37, 70, 200, 300},
                            {" d64", " d24 dv40", " d128", " d128", " d192 dv128", " d256", " d512", " d200 dv136"},
                            {" bf16", " f16"}};

class PagedGrid : public Gpu, public ::testing::WithParamInterface<uint32_t> {};

// Unused pages and rows hold NaN and the ends of tables no pages; what is right is so in any order of the pages, and to
// the bit the result without pages: that of dense keys, and of packed ones where no sequence is few rows, which decode
// over other keys alone.
TEST_P(PagedGrid, IsRightAndHasTheBitsOfKeysThatAreNotInPages) {
    constexpr uint32_t kCases = 375;
    for (uint32_t seed = GetParam() * kCases; seed < (GetParam() + 1) * kCases; ++seed) {
        const PagedCase c = draw_paged_case(seed, kChoices);
        expect_right(c.paged());
        const std::vector<std::byte> expected = outputs_of(c.problem);
        EXPECT_EQ(outputs_of(c.paged()), expected) << c.paged();
        EXPECT_EQ(outputs_of(c.paged() + " order7"), expected) << c.paged() << " order7";
        if (!c.packed.empty() && plan_of(c.problem).find("decode") == std::string::npos) {
            EXPECT_EQ(outputs_of(c.packed), expected) << c.packed << "\n" << c.problem;
        }
        if (HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Eighths, PagedGrid, ::testing::Range(0u, 8u));

// ---- several tiles a CTA, which go around the rings

TEST_F(Gpu, LongSequencesInPages) {
    for (const std::string pages : {" page16", " page64 csr", " page1", " page48", " page8", " page17"}) {
        for (const std::string tail : {"hq8 hk2 d128 bf16 causal", "hq4 hk4 d64 bf16 causal lse",
                                       "hq4 hk1 d256 f16 causal softcap30", "hq2 hk1 d512 bf16 full",
                                       "hq4 hk2 d192 dv128 bf16 left700 right0 lse", "hq8 hk2 d128 f16 causal alibi"}) {
            for (const std::string queries :
                 {"b5 sq1300 sk2900 used_k=2900,1300,2048,5,1 ", "varlen qlens=1300,1,16,700,1,900,1,3,2000 sk2500 "}) {
                expect_right(queries + tail + pages);
                EXPECT_EQ(outputs_of(queries + tail + pages), outputs_of(queries + tail)) << queries << tail << pages;
                if (HasFailure()) return;
            }
        }
    }
}

// Batches that are dealt out by load (balance.cuh), whose costs an offset changes.
TEST_F(Gpu, LongVarlenBatchesInPagesDealtOutByLoad) {
    const std::string lengths =
        "varlen qlens=4000,1,0,2500,3300,130,1024 sk4100 used_k=4100,2000,300,2500,1700,3000,1024 ";
    for (const std::string tail :
         {"hq32 hk8 d128 bf16 full lse page64", "hq32 hk8 d128 f16 causal page16", "h16 d64 bf16 full lse page128 csr",
          "hq12 hk4 d256 bf16 causal page32", "hq32 hk8 d128 bf16 causal page1 qoff=100,1999,0,-50,-1600,2870,0"}) {
        expect_plan(lengths + tail, "dealt out");
        expect_right(lengths + tail);
    }
}

// ---- 1.7

TEST_F(Gpu, ASequenceInPagesDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d64 bf16 causal lse", " h1 d64 f16 lse tree causal",
                                   " hq12 hk2 d128 bf16 softcap30 lse", " hq8 hk1 d256 f16 alibi causal lse"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq70 sk3000 page16", "b3 sq70 sk3000 page16 used_k=3000,0,77"},
              {"b1 sq300 sk2900 page64 csr", "b9 sq300 sk2900 page64 csr"},
              {"varlen qlens=200 sk1500 page48",
               "varlen qlens=200,300,0,1,16,1,1,70,500 sk1500 page48 used_k=1500,300,9,1400,1100,7,1500,70,800"},
              {"varlen qlens=1 sk203 page1", "varlen qlens=1,5,0,300 sk203 page1 used_k=203,9,4,0"},
              {"b1 sq1 sk2900 page16", "varlen qlens=1,300,4,1 sk2900 page16"},
              {"varlen qlens=4 sk2900 page16", "varlen qlens=4,1,130,0,9 sk2900 page16 used_k=2900,5,700,9,9"},
              {"b1 sq16 sk1500 page64", "varlen qlens=16,17,1 sk1500 page64"},
              {"varlen qlens=130 sk700", "varlen qlens=130,9,100 sk700 used_k=700,1,333"}})
            expect_same_sequence(*run_case(alone + tail), *run_case(together + tail), 0);
    }
}

// A table that has room for more changes nothing.
TEST_F(Gpu, TheSizeOfATableChangesNoBit) {
    for (const std::string tail : {" hq8 hk2 d128 bf16 causal alibi lse", " hq8 hk2 d64 f16 softcap20 causal lse",
                                   " hq8 hk2 d64 bf16 full", " hq8 hk1 d256 f16 left100 alibi"})
        for (const std::string queries : {"b2 sq70", "varlen qlens=70,70"})
            for (const std::string lengths : {" used_k=150,99 page16", " used_k=150,99 page7"}) {
                const auto wide = run_case(queries + " sk40000" + lengths + tail),
                           narrow = run_case(queries + " sk150" + lengths + tail);
                for (int64_t i = 0; i < 2; ++i) expect_same_sequence(*wide, *narrow, i);
            }
}

// ---- forms that differ

TEST_F(Gpu, QueriesAndKeysHaveFormsOfTheirOwn) {
    for (const std::string tail :
         {" hq4 hk2 d24 f16 lse", " hq4 hk2 d128 bf16 causal lse", " h2 d256 f16 left30 causal"}) {
        expect_right("b3 sq5 klens=70,0,9" + tail);
        expect_right("b3 sq70 klens=300,64,1" + tail + " used_k=299,0,1 used_q=70,3,1");
        expect_right("varlen qlens=5,0,70 sk130" + tail);
        expect_right("varlen qlens=5,0,70 sk130" + tail + " used_k=0,5,129 used_q=5,0,64");
        // The same numbers in four forms, of rows that decode and of such that do not.
        for (const int n : {1, 2, 3, 8, 16, 20}) {
            const std::string rows = std::to_string(n), lengths = rows + "," + rows;
            const auto dense = run_case("b2 sq" + rows + " sk70" + tail);
            std::vector<std::string> forms = {"b2 sq" + rows + " klens=70,70", "varlen qlens=" + lengths + " sk70"};
            if (n > 16) forms.push_back("varlen qlens=" + lengths + " klens=70,70");
            for (const std::string& form : forms)
                for (int64_t i = 0; i < 2; ++i) expect_same_sequence(*run_case(form + tail), *dense, i);
        }
    }
}

// ---- query_offset and tree_mask

TEST_F(Gpu, TheDefaultAlignmentAsAnOffsetChangesNoBit) {
    for (const std::string tail : {" hq4 hk2 d64 f16 causal lse", " hq4 hk2 d128 bf16 left20 alibi lse",
                                   " h2 d256 f16 chunk64 lse", " hq4 hk1 d128 f16 causal softcap15"}) {
        for (const auto& [plain, offset] :
             {std::pair<std::string, std::string>{"b2 sq70 sk200 used_k=200,9", " qoff=130,-61"},
              {"varlen qlens=3,90 klens=150,60", " qoff=147,-30"}})
            EXPECT_EQ(outputs_of(plain + tail + offset), outputs_of(plain + tail)) << plain << tail << offset;
    }
}

TEST_F(Gpu, OffsetsOfAnySign) {
    for (const std::string rows :
         {"b3 sq1 sk100", "b3 sq16 sk600", "b3 sq130 sk100", "b3 sq700 sk900", "varlen qlens=1,16,700 sk900"}) {
        for (const std::string offsets : {" qoff=-5,0,99", " qoff=-536870911,536870911,50", " qoff=-140,700,-1"}) {
            for (const std::string window :
                 {" causal", " left30", " full", " left3 right40", " chunk48", " left300 right0"})
                for (const std::string d : {" d24 f16", " d128 bf16", " d256 bf16"})
                    expect_right(rows + offsets + window + " hq4 hk2 lse" + d);
            expect_right(rows + offsets + " hq4 hk2 d24 bf16 alibi sinks lse vnan3");
            if (HasFailure()) return;
        }
    }
}

// A tree is a boolean mask over the last keys.
TEST_F(Gpu, ATreeIsAMaskOfTheLastKeys) {
    for (const std::string text :
         {"b2 sq7 sk200 hq4 hk2 d24 f16 lse tree", "b2 sq40 sk90 hq4 hk2 d24 bf16 causal tree",
          "b2 sq90 sk90 h1 d64 f16 tree", "b2 sq16 sk9 h2 d128 bf16 lse tree", "b1 sq1 sk50 h2 d256 f16 tree used_k=0",
          "b1 sq1 sk1 h2 d512 bf16 tree", "varlen qlens=16,0,1,70 klens=1000,5,1,70 hq4 hk1 d64 f16 causal lse tree",
          "varlen qlens=16,0,1,170 sk1000 page16 hq4 hk1 d192 dv128 f16 causal lse tree",
          "b2 sq8 sk700 hq4 hk1 d64 f16 causal tree alibi mask=bh bias=1h softcap9 sinks lse"})
        expect_right(text);
    EXPECT_NE(outputs_of("b1 sq9 sk50 h1 d64 f16 tree causal"), outputs_of("b1 sq9 sk50 h1 d64 f16 causal"));
}

// ---- 1.8

// What the device says of lengths, offsets and pages may change between replays of a graph.
TEST_F(Gpu, AGraphReplaysOtherLengthsOffsetsAndPages) {
    const std::string shape = "b3 sq70 sk600 hq8 hk2 d128 bf16 causal lse page16";
    const auto data = on_gpu(shape + " used_k=600,600,600 qoff=530,530,530");
    const Stream stream;
    require_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    ASSERT_EQ(foveal_forward(&data->args(), stream), FOVEAL_OK) << foveal_last_error();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    require_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    for (int round = 0; round < 30; ++round) {
        const int length = 1 + 19 * round;
        const auto other = on_gpu(shape + " used_k=" + std::to_string(length) + ",600," + std::to_string(600 - length) +
                                  " qoff=" + std::to_string(length - 70) + ",5," + std::to_string(300 - 30 * round) +
                                  " order" + std::to_string(2 * round));
        const foveal_forward_args &from = other->args(), &to = data->args();
        const auto copy = [](const foveal_tensor& source, const foveal_tensor& target, size_t element) {
            size_t bytes = element;
            for (int i = 0; i < source.rank; ++i) bytes *= static_cast<size_t>(source.shape[i]);
            require_cuda(cudaMemcpy(target.data, source.data, bytes, cudaMemcpyDeviceToDevice), "copy");
        };
        copy(from.k, to.k, 2);
        copy(from.v, to.v, 2);
        for (foveal_tensor foveal_forward_args::*numbers :
             {&foveal_forward_args::seqused_k, &foveal_forward_args::query_offset, &foveal_forward_args::block_table})
            copy(from.*numbers, to.*numbers, 4);
        data->poison_outputs();
        require_cuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
        stream.synchronize();
        run(*other);
        ASSERT_EQ(outputs(*data), outputs(*other)) << "round " << round;
    }
    require_cuda(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    require_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

}  // namespace
}  // namespace foveal_testing
