// The plan's heuristics: which kernel a problem gets, and in which order its tiles go. No GPU is needed.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "tests/support/plan_text.hpp"

namespace foveal_testing {
namespace {

TEST(Plan, TheSmallestTileThatHoldsTheHeadDimensions) {
    expect_plan("s512 h2 d8 bf16", "d up to 64, d_v up to 64, plain");
    expect_plan("s512 h2 d64 dv72 bf16", "d up to 128, d_v up to 128, plain");
    expect_plan("s512 h2 d136 dv128 f16", "d up to 192, d_v up to 128, plain");
    expect_plan("s512 h2 d192 bf16", "d up to 256, d_v up to 256, plain");
    expect_plan("s512 h2 d256 dv264 bf16", "d up to 512, d_v up to 512, plain");
}

TEST(Plan, OnlyOptionsPayForOptions) {
    for (const std::string plain : {"causal", "full", "left5 right3 topleft", "sinks causal", "scale2"})
        expect_plan("s512 h2 d128 bf16 " + plain, "d_v up to 128, plain");
    for (const std::string option : {"softcap30 alibi", "softcap2e6", "alibi", "bias_f32=bh", "bias=bh mask=bh",
                                     "bias=11 softcap30", "mask=bh", "chunk64", "scale0", "scale-1"})
        expect_plan("s512 h2 d128 bf16 " + option, "d_v up to 128, with score options\n");
    expect_plan("s512 h2 d128 bf16 sinks lse", "d_v up to 128, with log-sum-exp");
    expect_plan("s512 h2 d128 bf16 softcap30 left100 sinks", "d_v up to 128, with softcap\n");
    expect_plan("s512 h2 d128 bf16 softcap30 lse", "d_v up to 128, with softcap and log-sum-exp");
    expect_plan("s512 h2 d128 bf16 alibi lse", "with score options and log-sum-exp");
    expect_plan("s512 h2 d128 bf16 bias=bh causal", "d_v up to 128, with a bias\n");
    expect_plan("s512 h2 d128 f16 bias=11 sinks lse", "d_v up to 128, with a bias and log-sum-exp");
    expect_plan("sq512 sk513 h2 d128 bf16 bias=bh", "d_v up to 128, with a bias\n");  // rows of 1026 bytes
    expect_plan("s512 h2 d128 bf16 bias=b11k", "d_v up to 128, with a bias\n");
    expect_plan("s512 h2 d128 bf16 softcap65", "d_v up to 128, with score options\n");
    expect_plan("s512 h2 d128 bf16 softcap64", "d_v up to 128, with softcap\n");
    // Where there is no kernel of its own, one that can do more.
    expect_plan("s512 h2 d192 dv128 bf16 lse", "d up to 192, d_v up to 128, with score options and log-sum-exp");
    expect_plan("s512 h2 d256 bf16 softcap30", "d up to 256, d_v up to 256, with softcap and log-sum-exp");
    expect_plan("s512 h2 d192 dv128 bf16 softcap30", "d_v up to 128, with score options and log-sum-exp");
    expect_plan("s512 h2 d256 bf16 alibi", "d up to 256, d_v up to 256, with score options and log-sum-exp");
    expect_plan("s512 h2 d64 bf16 bias=1h", "d up to 64, d_v up to 64, with a bias\n");
    expect_plan("s512 h2 d64 bf16 bias=1h", "tile       128 rows");
    expect_plan("s512 h2 d512 bf16 bias=1h", "d up to 512, d_v up to 512, with score options and log-sum-exp");
}

TEST(Plan, LongFullRowsOfD64GetThreeWarpgroups) {
    expect_plan("b16 s1024 h32 d64 bf16 causal", "tile       256 rows");
    expect_plan("s16384 h32 d64 bf16 causal", "tile       256 rows");
    expect_plan("s16384 h32 d64 bf16 full", "tile       192 rows");
    expect_plan("s16384 h32 d64 bf16 full lse", "tile       256 rows");
    expect_plan("s16384 h32 d64 bf16 full softcap30", "tile       256 rows");
    // Where a row of s_k says nothing of a sequence's own, it must not decide its bits.
    expect_plan("b2 s16384 h32 d64 bf16 full used_k=16384,1", "tile       256 rows");
    expect_plan("s16384 h32 d64 bf16 full page16", "tile       256 rows");
    expect_plan("s512 h2 d64 bf16 alibi", "tile       128 rows");
}

TEST(Plan, KeysInPagesComeInTheLargestBoxesThatPagesHold) {
    for (const auto& [page, rows] : {std::pair{"8", "8"},
                                     {"16", "16"},
                                     {"24", "8"},
                                     {"48", "16"},
                                     {"64", "64"},
                                     {"128", "128"},
                                     {"192", "64"},
                                     {"256", "128"},
                                     {"1024", "128"}})
        expect_plan(std::string("b2 s512 h2 d128 bf16 causal page") + page,
                    std::string("by the copy engine, in boxes of ") + rows + " rows\n");
    expect_plan("b2 s512 h2 d256 bf16 page128", "in boxes of 64 rows");
    expect_plan("b2 s512 h2 d512 bf16 page128 csr", "in boxes of 32 rows");
    for (const std::string page : {"1", "4", "12", "17", "97"})
        expect_plan("b2 s512 h2 d128 bf16 page" + page, "loads      k and v row by row");
    for (const std::string form : {"varlen qlens=50,9 sk70", "b2 sq50 klens=70,90", "b2 s50 qoff=5,-9", "b2 s50 tree"})
        expect_plan(form + " h2 d128 f16", "by the copy engine, in boxes of 128 rows");
    EXPECT_EQ(plan_of("b2 s512 h2 d128 bf16 causal").find("loads "), std::string::npos);
}

// The bits follow from the kernel: the same tile, and the same variant but for a log-sum-exp that nobody asked for.
TEST(Plan, KeysOfAnyFormTakeTheSameTiles) {
    const auto line = [](const std::string& plan, const std::string& name) {
        const size_t begin = plan.find("\n" + name) + 1;
        return plan.substr(begin, plan.find('\n', begin) - begin);
    };
    for (const std::string d : {"d64", "d128", "d192 dv128", "d256", "d512"})
        for (const std::string option :
             {"", " lse", " softcap30", " softcap30 lse", " bias=bh", " bias=1h lse", " alibi", " alibi lse",
              " mask=b1", " chunk64 lse", " scale-1", " softcap100"}) {
            const std::string text = "b2 sq300 sk500 used_k=500,9 hq4 hk2 bf16 causal " + d + option;
            const std::string apart = plan_of(text), paged = plan_of(text + " page16");
            EXPECT_EQ(line(paged, "tile "), line(apart, "tile ")) << text;
            std::string kernel = line(apart, "kernel ");
            const std::string lse = " and log-sum-exp", got = line(paged, "kernel ");
            const bool has_lse = got.find("log-sum-exp") != std::string::npos;
            if (has_lse && kernel.find("log-sum-exp") == std::string::npos) kernel += lse;
            EXPECT_EQ(got, kernel) << text;
        }
}

TEST(Plan, ShortRowsOfOneHeadAfterTheOther) {
    expect_plan("b16 s1024 h16 d128 bf16 full",
                "1 heads of K a section, 256 sections (the last has what is left), first");
    // The last heads end together.
    expect_plan("b16 s1024 h16 d128 bf16 causal",
                "1 heads of K a section, 232 sections (the last has what is left), last");
    // Long rows, whose heads are too few to be balanced one by one.
    expect_plan("b4 s4096 h16 d128 bf16 causal", "11 heads of K a section, 4 sections");
}

TEST(Plan, WarpgroupsWithoutRowsPassOverLongTiles) {
    expect_plan("b1 sq64 sk500 h16 d128 bf16 full", "pass over tiles of 1 or more K/V blocks");
    expect_plan("b1 sq129 sk500 h16 d128 bf16 full", "pass over tiles of 4 or more");
    expect_plan("varlen qlens=70 klens=500 h16 d128 bf16 full", "pass over tiles of 4 or more");
}

TEST(Plan, HeadsArePackedWhereThatSavesWork) {
    expect_plan("b4 sq64 sk500 hq32 hk8 d128 bf16 causal", "rows of 4 heads;");
    expect_plan("b4 sq130 sk500 hq8 hk2 d128 bf16 full sinks", "rows of 4 heads;");
    expect_plan("b4 sq64 sk500 hq32 hk8 d128 bf16 alibi", "rows of 4 heads;");
    expect_plan("b4 sq64 sk500 hq12 hk2 d128 bf16 full", "rows of 2 heads;");
    expect_plan("b4 s128 hq32 hk8 d64 bf16 causal", "rows of 4 heads;");     // 256 rows a tile
    expect_plan("b4 s128 hq32 hk8 d64 bf16 alibi", "rows of one head;");     // 128
    expect_plan("b4 s4096 hq32 hk8 d128 bf16 causal", "rows of one head;");  // whole tiles
    expect_plan("b4 s120 hq8 hk4 d128 bf16 causal", "rows of one head;");    // two tiles, or two
    expect_plan("b4 sq64 sk500 hq12 hk4 d128 bf16 full", "rows of 3 heads;");
    expect_plan("b4 sq16 sk500 hq28 hk4 d128 bf16 causal", "rows of 7 heads;");
    expect_plan("b4 sq64 sk500 hq40 hk8 d128 bf16 causal", "rows of 2 heads;");    // of 5
    expect_plan("b4 sq100 sk500 hq28 hk4 d128 bf16 causal", "rows of one head;");  // 7 tiles either way
    // As many tiles, but of fewer K/V blocks: their rows are more than a block's keys, or the window is narrow.
    expect_plan("b8 s4096 hq32 hk8 d64 bf16 causal", "rows of 4 heads;");
    expect_plan("b8 s4096 hq64 hk8 d64 bf16 left127 causal", "rows of 8 heads;");
    expect_plan("b8 s4096 hq32 hk8 d64 bf16 full", "rows of one head;");
    expect_plan("varlen qlens=900,7 klens=900,900 hq32 hk8 d64 bf16 causal",
                "in sequences that do not have more tiles");
    expect_plan("varlen qlens=900,7 klens=900,900 hq32 hk8 d128 bf16 causal", "in sequences that have fewer tiles");
    // Whatever the lengths are.
    for (const std::string lengths : {"7,9", "64,64", "1000,70"})
        expect_plan("varlen qlens=" + lengths + " klens=1000,1000 hq40 hk8 d128 bf16 causal",
                    "rows of 5 heads in sequences");
    expect_plan("varlen qlens=70 klens=500 hq16 hk4 d128 bf16 full", "rows of 4 heads in sequences that have fewer");
    expect_plan("varlen qlens=4000 klens=4000 hq32 hk8 d128 bf16 causal", "rows of 4 heads in sequences");
    // Bundles of four CTAs, and two tiles side by side.
    expect_plan("varlen qlens=8000 klens=8000 hq8 hk2 d128 bf16 causal", "rows of 4 heads in sequences");
}

// Contract 1.7: else a sequence's result could depend on what else is in the batch, since the rows of a tile share the
// form in which scores are capped.
TEST(Plan, WhetherHeadsArePackedFollowsFromTheSequenceAlone) {
    const std::string long_ones = ",2048,2048,2048,2048,2048,2048,2048,2048,9000,9000";
    const auto packing_of = [](const std::string& text) {
        const std::string plan = plan_of(text);
        const size_t begin = plan.find("rows of ", plan.find("stages;")), end = plan.find(';', begin);
        EXPECT_NE(end, std::string::npos) << plan;
        return plan.substr(begin, end - begin);
    };
    int dealt_out = 0;
    for (const std::string heads : {"hq12 hk2", "hq16 hk2", "hq8 hk1", "hq24 hk8", "hq6 hk2", "hq32 hk8", "hq5 hk1"})
        for (const std::string dims : {"d64 bf16", "d128 f16", "d256 bf16", "d512 bf16"})
            for (const std::string option : {"softcap50", "alibi", "causal lse"}) {
                const std::string tail = " " + heads + " " + dims + " " + option;
                const std::string alone = "varlen qlens=20 klens=20" + tail;
                const std::string among = "varlen qlens=20" + long_ones + " klens=20" + long_ones + tail;
                EXPECT_EQ(packing_of(alone), packing_of(among)) << among;
                dealt_out += plan_of(among).find("dealt out") != std::string::npos;
                // Dense: from s_q and s_k, whatever b is.
                const std::string dense = " sq70 sk500" + tail;
                EXPECT_EQ(packing_of("b1" + dense), packing_of("b1000" + dense)) << dense;
            }
    EXPECT_GT(dealt_out, 50);
}

TEST(Plan, LongTilesOfVarlenAreDealtOutByLoad) {
    const auto varlen = [](const std::string& length, const std::string& tail) {
        return "varlen qlens=1," + length + " klens=1," + length + tail;
    };
    expect_plan(varlen("8000", " hq32 hk8 d128 bf16 causal"), "dealt out to bundles of 4 CTAs by what they have");
    expect_plan("varlen qlens=2400,0,2600 klens=3000,5,3400 hq16 hk8 d128 bf16 full", "dealt out");  // gpu_tests.py
    expect_plan(varlen("8000", " hq6 hk2 d128 bf16 full"), "dealt out to bundles of 6 CTAs");
    expect_plan(varlen("8000", " hq5 hk1 d128 bf16 causal"), "in serpentines");  // bundles of 1 would be too many
    expect_plan(varlen("800", " hq32 hk8 d128 bf16 causal"), "in serpentines");
    expect_plan(varlen("8000", " hq32 hk8 d128 bf16 left200 right0"), "in serpentines");
    // Long tiles, but few: the first ones would wait for too large a part of the whole.
    expect_plan("varlen qlens=2000 klens=2000 hq32 hk8 d128 bf16 causal", "in serpentines");
    expect_plan("varlen qlens=4000 klens=4000 hq32 hk8 d128 bf16 causal", "dealt out");
}

}  // namespace
}  // namespace foveal_testing
