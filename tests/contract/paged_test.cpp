// Keys and values in pages, offsets and trees (contract 1.3, 1.11), on the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/cpu/fixture.hpp"
#include "tests/support/paged_cases.hpp"

namespace foveal_testing {
namespace {

// ---- the grid

PagedCase draw_case(uint32_t seed) {
    static const PagedChoices choices{{1, 8, 16, 17, 48, 64, 128, 256},
                                      {1, 200, 517},
                                      {1, 1, 2, 3, 5, 8, 16},
                                      {0, 1, 4, 16, 37, 70},
                                      {" d64", " d24 dv40", " d128", " d13"},
                                      {" f32", " bf16", " f16"}};
    return draw_paged_case(seed, choices);
}

// Unused pages and rows hold NaN and the ends of tables no pages; what is right is so in any order of the pages, and to
// the bit the result without pages.
TEST(Contract_1_11, Grid) {
    constexpr uint32_t kCases = 500;
    for (uint32_t seed = 1; seed <= kCases; ++seed) {
        const PagedCase c = draw_case(seed);
        const std::string paged = c.paged();
        expect_right(paged);
        const auto expected = run(c.problem), got = run(paged), reordered = run(paged + " order7");
        for (const TensorId id : {TensorId::kOut, TensorId::kLse}) {
            EXPECT_EQ(got->bytes(id), expected->bytes(id)) << paged;
            EXPECT_EQ(reordered->bytes(id), expected->bytes(id)) << paged << " order7";
        }
        if (HasFailure()) return;
    }
}

// A library that ignores something.
struct Mutation {
    std::string name;
    std::function<void(foveal_forward_args&)> drop;
};

// The grid bites: some case fails where an argument is dropped on the way, or one entry stands for all.
TEST(Contract_1_11, TheGridNoticesWhatIsIgnored) {
    const Mutation mutations[] = {
        {"query_offset", [](auto& args) { args.query_offset.rank = 0; }},
        {"query_offset of each sequence", [](auto& args) { args.query_offset.stride[0] = 0; }},
        {"tree_mask", [](auto& args) { args.tree_mask.rank = 0; }},
        {"tree_mask of each query",
         [](auto& args) {
             if (args.tree_mask.rank != 0) args.tree_mask.stride[args.tree_mask.rank - 2] = 0;
         }},
        {"block_table of each sequence", [](auto& args) { args.block_table.stride[0] = 0; }},
        {"the page's row",
         [](auto& args) {
             args.v.stride[1] = args.page_indptr.rank + args.block_table.rank != 0 ? 0 : args.v.stride[1];
         }},
    };
    for (const Mutation& mutation : mutations) {
        const Forward mutated = [&](const foveal_forward_args& args) {
            foveal_forward_args changed = args;
            mutation.drop(changed);
            return foveal_forward(&changed, nullptr);
        };
        bool noticed = false;
        for (uint32_t seed = 1; seed <= 100 && !noticed; ++seed) {
            const PagedCase c = draw_case(seed);
            noticed = !check_case(parse_case(c.paged()), kCpu, mutated).passed();
        }
        EXPECT_TRUE(noticed) << mutation.name;
    }
}

// The first sequence draws the same inputs whatever follows it.
TEST(Contract_1_11, ASequenceDoesNotDependOnItsBatch) {
    for (const std::string tail : {" hq4 hk2 d64 bf16 causal lse", " h1 d64 f16 lse tree causal",
                                   " hq12 hk2 d64 f32 softcap30 lse", " hq8 hk1 d64 f32 alibi causal lse"}) {
        for (const auto& [alone, together] :
             {std::pair<std::string, std::string>{"b1 sq1 sk3000 page16", "b3 sq1 sk3000 page16 used_k=3000,0,77"},
              {"b1 sq16 sk2900 page64 csr", "b3 sq16 sk2900 page64 csr"},
              {"varlen qlens=2 sk1500 page48", "varlen qlens=2,300,0,1,16 sk1500 page48 used_k=1500,300,9,1400,1100"},
              {"varlen qlens=131 sk203 page1", "varlen qlens=131,5,0,300 sk203 page1 used_k=203,9,4,0"},
              {"b1 sq3 klens=700", "b3 sq3 klens=700,0,90"},
              {"varlen qlens=3 sk700", "varlen qlens=3,9,100 sk700 used_k=700,1,333"}}) {
            const auto one = run(alone + tail), more = run(together + tail);
            for (int64_t head = 0; head < one->the_case().heads_q; ++head) {
                for (const TensorId id : {TensorId::kOut, TensorId::kLse})
                    EXPECT_TRUE(same_bits(rows_of(*one, id, 0, head), rows_of(*more, id, 0, head))) << together + tail;
            }
        }
    }
}

TEST(Contract_1_11, TheNumberOfThreadsChangesNoBit) {
    const std::string text = "b2 sq4 sk5000 hq8 hk2 d64 bf16 causal lse page16 tree";
    ASSERT_EQ(foveal_set_num_threads(1), FOVEAL_OK);
    const auto one = run(text);
    ASSERT_EQ(foveal_set_num_threads(5), FOVEAL_OK);
    const auto more = run(text);
    ASSERT_EQ(foveal_set_num_threads(0), FOVEAL_OK);
    EXPECT_EQ(more->bytes(TensorId::kOut), one->bytes(TensorId::kOut));
    EXPECT_EQ(more->bytes(TensorId::kLse), one->bytes(TensorId::kLse));
}

// ---- forms that differ

TEST(Contract_1_1, QueriesAndKeysHaveFormsOfTheirOwn) {
    for (const std::string tail :
         {" hq4 hk2 d24 f32 lse", " hq4 hk2 d24 bf16 causal lse", " h2 d24 f16 left30 causal"}) {
        expect_right("b3 sq5 klens=70,0,9" + tail);
        expect_right("b3 sq70 klens=300,64,1" + tail + " used_k=299,0,1 used_q=70,3,1");
        expect_right("varlen qlens=5,0,70 sk130" + tail);
        expect_right("varlen qlens=5,0,70 sk130" + tail + " used_k=0,5,129 used_q=5,0,64");
        // The same numbers in four forms.
        const auto dense = run("b2 sq5 sk70" + tail);
        for (const std::string form : {"b2 sq5 klens=70,70", "varlen qlens=5,5 klens=70,70", "varlen qlens=5,5 sk70"}) {
            const auto other = run(form + tail);
            for (int64_t i = 0; i < 2; ++i)
                EXPECT_TRUE(same_bits(rows_of(*other, TensorId::kOut, i, 1), rows_of(*dense, TensorId::kOut, i, 1)))
                    << form + tail;
        }
    }
}

// ---- query_offset and tree_mask

TEST(Contract_1_3, TheDefaultAlignmentAsAnOffsetChangesNoBit) {
    for (const std::string tail :
         {" hq4 hk2 d24 f32 causal lse", " hq4 hk2 d24 bf16 left20 alibi lse", " h2 d24 f16 chunk64 lse"}) {
        for (const auto& [plain, offset] :
             {std::pair<std::string, std::string>{"b2 sq70 sk200 used_k=200,9", " qoff=130,-61"},
              {"varlen qlens=3,90 klens=150,60", " qoff=147,-30"}})
            EXPECT_EQ(run(plain + tail + offset)->bytes(TensorId::kOut), run(plain + tail)->bytes(TensorId::kOut))
                << plain + tail + offset;
        EXPECT_EQ(run("b2 sq70 sk200" + tail + " qoff=0,0")->bytes(TensorId::kOut),
                  run("b2 sq70 sk200 topleft" + tail)->bytes(TensorId::kOut))
            << tail;
    }
}

TEST(Contract_1_3, OffsetsOfAnySign) {
    for (const std::string rows : {"b3 sq1 sk100", "b3 sq16 sk600", "b3 sq130 sk100"}) {
        for (const std::string offsets : {" qoff=-5,0,99", " qoff=-536870911,536870911,50", " qoff=-140,700,-1"}) {
            for (const std::string window : {" causal", " left30", " full", " left3 right40", " chunk48"})
                expect_right(rows + offsets + window + " hq4 hk2 d24 f32 lse");
            expect_right(rows + offsets + " hq4 hk2 d24 bf16 alibi sinks lse vnan3");
        }
    }
}

// A tree is a boolean mask over the last keys.
TEST(Contract_1_3, ATreeIsAMaskOfTheLastKeys) {
    for (const std::string text :
         {"b2 sq7 sk200 hq4 hk2 d24 f32 lse tree", "b2 sq40 sk90 hq4 hk2 d24 bf16 causal tree",
          "b2 sq90 sk90 h1 d24 f32 tree", "b2 sq16 sk9 h2 d24 f32 lse tree", "b1 sq1 sk50 h2 d24 f32 tree used_k=0",
          "b1 sq1 sk1 h2 d24 f32 tree", "varlen qlens=16,0,1,70 klens=1000,5,1,70 hq4 hk1 d64 f16 causal lse tree",
          "b2 sq8 sk700 hq4 hk1 d64 f16 causal tree alibi mask=bh bias=1h softcap9 sinks lse"})
        expect_right(text);
    const auto without = run("b2 sq1 sk200 hq4 hk2 d24 f32 causal"),
               with = run("b2 sq1 sk200 hq4 hk2 d24 f32 causal tree");
    EXPECT_EQ(with->bytes(TensorId::kOut), without->bytes(TensorId::kOut)) << "a tree of its root alone";
    EXPECT_NE(run("b1 sq9 sk50 h1 d24 f32 tree causal")->bytes(TensorId::kOut),
              run("b1 sq9 sk50 h1 d24 f32 causal")->bytes(TensorId::kOut));
}

// No word: the whole of what the window shows.
TEST(Contract_1_3, ATreeWithoutWordsHidesNothing) {
    const auto data = on_cpu("b2 sq9 sk50 hq4 hk2 d24 f32 causal tree");
    foveal_forward_args args = data->args();
    args.tree_mask.shape[2] = 0;
    ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_EQ(data->bytes(TensorId::kOut), run("b2 sq9 sk50 hq4 hk2 d24 f32 causal")->bytes(TensorId::kOut));
}

// ---- what is read, and what is refused

void expect_refused(const std::string& text, foveal_tensor foveal_forward_args::*tensor, size_t index, int32_t value,
                    const std::vector<std::string>& words) {
    const auto data = on_cpu(text);
    static_cast<int32_t*>((data->args().*tensor).data)[index] = value;
    EXPECT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_INVALID_ARGUMENT) << text;
    const std::string message = foveal_last_error();
    for (const std::string& word : words) EXPECT_NE(message.find(word), std::string::npos) << message;
    EXPECT_EQ(data->scan(TensorId::kOut).poison, data->scan(TensorId::kOut).elements) << "a refused call wrote";
}

TEST(Contract_1_11, PagesOutOfRangeAreRefused) {
    using Args = foveal_forward_args;
    const std::string text = "b2 sq3 sk40 hq4 hk2 d24 f32 page16 used_k=40,17";  // 9 pages, tables of 4
    for (const int32_t wrong : {9, -1, INT32_MIN, INT32_MAX}) {
        expect_refused(text, &Args::block_table, 2, wrong,
                       {"block_table[0, 2] is " + std::to_string(wrong), "9 pages"});
        expect_refused(text, &Args::block_table, 5, wrong,
                       {"block_table[1, 1] is " + std::to_string(wrong), "9 pages"});
        // Sequence 1 has an entry more than pages in the list.
        expect_refused(text + " csr", &Args::page_indices, 4, wrong, {"page_indices[4] is " + std::to_string(wrong)});
    }
    expect_refused(text, &Args::seqused_k, 1, 65, {"seqused_k[1] is 65", "[0, 64]"});
    expect_refused(text, &Args::seqused_k, 0, -1, {"seqused_k[0] is -1"});
    expect_refused(text + " csr", &Args::seqused_k, 0, 49, {"seqused_k[0] is 49", "[0, 48]", "page_indptr"});
    expect_refused(text + " csr", &Args::page_indptr, 0, 1, {"page_indptr[0] is 1", "must be 0"});
    expect_refused(text + " csr", &Args::page_indptr, 1, -1, {"page_indptr[1] is -1"});
    expect_refused(text + " csr", &Args::page_indptr, 2, 2, {"page_indptr[2] is 2"});
    expect_refused(text + " csr", &Args::page_indptr, 2, 10, {"page_indptr[2] is 10"});
    expect_refused(text + " qoff=5,6", &Args::query_offset, 1, 1 << 29, {"query_offset[1] is 536870912"});
    expect_refused(text + " qoff=5,6", &Args::query_offset, 0, INT32_MIN, {"query_offset[0] is -2147483648"});
}

// A table that ends where the memory does, and pages that no query sees.
TEST(Contract_1_11, EntriesBehindTheKeysAreNotRead) {
    const auto data = on_cpu("b2 sq3 sk40 hq4 hk2 d24 f32 page16 used_k=33,16");
    foveal_forward_args args = data->args();
    std::vector<int32_t> table = {0, 1, 2, 3};  // [2, 3]: the second row has its first entry alone
    args.block_table.data = table.data();
    args.block_table.shape[1] = args.block_table.stride[0] = 3;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    // One row for both.
    args.block_table.stride[0] = 0;
    table.resize(3);
    table.shrink_to_fit();
    args.block_table.data = table.data();
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    // No query, no entry.
    args.block_table.data = nullptr;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_INVALID_ARGUMENT);
    const auto none = on_cpu("varlen qlens=0,0 sk40 hq4 hk2 d24 f32 page16");
    static_cast<int32_t*>(none->args().block_table.data)[0] = -1;
    EXPECT_EQ(foveal_forward(&none->args(), nullptr), FOVEAL_OK) << foveal_last_error();
}

TEST(Contract_1_8, AWorkspaceIsNotTouchedWhereNoneIsNeeded) {
    const auto data = on_cpu("b2 sq3 sk40 hq4 hk2 d24 f32 page16");
    foveal_forward_args args = data->args();
    alignas(16) unsigned char bytes[64];
    std::fill_n(bytes, sizeof bytes, static_cast<unsigned char>(7));
    args.workspace = bytes;
    args.workspace_bytes = sizeof bytes;
    EXPECT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
    EXPECT_TRUE(std::ranges::all_of(bytes, [](unsigned char byte) { return byte == 7; }));
}

TEST(Contract_1_11, APlanSaysWhereTheKeysLie) {
    for (const auto& [text, words] : {std::pair<std::string, std::string>{"b2 sq3 sk40 h2 d24 f32 page16",
                                                                          "9 pages of 16 rows, named by block_table"},
                                      {"b2 sq3 sk40 h2 d24 f32 page16 csr", "named by page_indptr and page_indices"},
                                      {"b2 sq3 klens=4,5 h2 d24 f32", "keys       varlen"},
                                      {"varlen qlens=3,4 sk5 h2 d24 f32", "keys       dense"},
                                      {"b2 sq3 sk5 h2 d24 f32 qoff=1,2 tree", "query_offset, tree mask"}}) {
        const foveal_forward_args args = shape_args(parse_case(text), kCpu);
        foveal_plan* plan = nullptr;
        ASSERT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << foveal_last_error();
        char description[2000];
        foveal_plan_describe(plan, description, sizeof description, nullptr);
        foveal_plan_destroy(plan);
        EXPECT_NE(std::string(description).find(words), std::string::npos) << description;
    }
}

}  // namespace
}  // namespace foveal_testing
