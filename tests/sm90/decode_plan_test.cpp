// What the decode's plan decides: which problems are its own, with which kernel, over how many CTAs, in which
// workspace.
#include <gtest/gtest.h>

#include <string>

#include "sm90/backend.hpp"
#include "sm90/decode/plan.hpp"

namespace foveal::sm90 {
namespace {

constexpr int64_t kHeadDim = 128, kPages = 1000;

// b sequences of one query, keys in pages of 64.
ForwardProblem problem(int64_t batch, int64_t heads_q, int64_t heads_k, int64_t head_dim = kHeadDim) {
    ForwardProblem p;
    p.dtype = DType::bf16;
    p.keys = KeyForm::paged;
    p.has_seqused_k = true;
    p.batch = batch;
    p.rows_q = 1;
    p.rows_k = 64 * 100;
    p.heads_q = heads_q;
    p.heads_k = heads_k;
    p.head_dim = p.head_dim_v = head_dim;
    p.q = p.out = {heads_q * head_dim, heads_q * head_dim, head_dim};
    p.lse = {heads_q, 1, 1};
    p.pages = kPages;
    p.page_size = 64;
    p.page_entries = p.page_table_stride = 100;
    p.k = p.v = {64 * heads_k * head_dim, heads_k * head_dim, head_dim};
    p.scale = 0.5f;
    return p;
}

std::string refusal_of(const ForwardProblem& p) {
    try {
        kBackend.check_supported(p);
    } catch (const Error& error) {
        EXPECT_EQ(error.status(), FOVEAL_UNSUPPORTED);
        return error.what();
    }
    return "";
}

void expect_refused(const ForwardProblem& p, const std::string& words) {
    const std::string refusal = refusal_of(p);
    EXPECT_NE(refusal.find(words), std::string::npos) << "'" << refusal << "' lacks '" << words << "'";
}

const DecodeTile& tile_of(const ForwardProblem& p) { return kDecodeTiles[decode_choice_of(p).tile_index].tile; }

TEST(DecodePlan, TakesFewQueriesOverACache) {
    ForwardProblem p = problem(4, 32, 8);
    EXPECT_TRUE(decodes(p));
    EXPECT_EQ(refusal_of(p), "");
    p.keys = KeyForm::dense;
    EXPECT_TRUE(decodes(p)) << "not in pages: the same kernel, so the same bits";
    p.has_seqused_k = false;
    EXPECT_TRUE(decodes(p)) << "lengths that the host knows: the same";
    p.rows_q = 8;
    EXPECT_TRUE(decodes(p)) << "32 columns, the most of two parts";
    p.rows_q = 9;
    EXPECT_FALSE(decodes(p)) << "three parts would read K and V three times";
    p = problem(4, 8, 8);
    p.rows_q = 16;
    EXPECT_TRUE(decodes(p)) << "the most that are few";
    p.rows_q = 17;
    EXPECT_FALSE(decodes(p)) << "enough for the forward kernel's tiles";
    EXPECT_TRUE(decodes(problem(4, 128, 1))) << "a single row, however many heads share a KV head";
    p.has_query_offset = p.has_tree = true;
    EXPECT_FALSE(decodes(p)) << "whatever the mask";
    p.rows_q = 1;
    EXPECT_TRUE(decodes(p));
    p.has_bias = true;
    EXPECT_FALSE(decodes(p)) << "the decode kernel has no bias";
    p.keys = KeyForm::paged;
    EXPECT_EQ(refusal_of(p), "") << "the forward kernel has";
}

TEST(DecodePlan, RefusesByName) {
    const auto refused = [](auto change, const char* words) {
        ForwardProblem p = problem(4, 32, 8);
        change(p);
        expect_refused(p, words);
    };
    refused([](auto& p) { p.dtype = DType::f32; }, "q.dtype is f32");
    refused([](auto& p) { p.head_dim = 520; }, "q's head dimension is 520");
    refused([](auto& p) { p.batch = int64_t{1} << 24; }, "16777216 sequences and k 8 heads, and 6400 rows: more than");
    ForwardProblem p = problem(4, 32, 8);
    p.head_dim = 100;
    expect_refused(p, "head dimension is 100");
    p = problem(4, 32, 8);
    p.k.row += 1;
    expect_refused(p, "k's row stride");
}

TEST(DecodePlan, TheSmallestTileThatHoldsTheColumns) {
    EXPECT_EQ(tile_of(problem(1, 8, 8)).columns, 4);
    EXPECT_EQ(tile_of(problem(1, 32, 8)).columns, 4);
    EXPECT_EQ(tile_of(problem(1, 40, 8)).columns, 8);
    EXPECT_EQ(tile_of(problem(1, 128, 8)).columns, 16);
    EXPECT_EQ(tile_of(problem(1, 8, 8, 80)).head_dim, 128);
    EXPECT_EQ(tile_of(problem(1, 8, 8, 40)).head_dim, 64);
    EXPECT_EQ(tile_of(problem(1, 8, 8, 256)).head_dim, 256);
    EXPECT_EQ(tile_of(problem(1, 8, 8, 264)).head_dim, 512);
    EXPECT_EQ(tile_of(problem(1, 128, 8, 512)).columns, 8) << "the most of d 512";
    for (const int64_t rows : {2, 3, 8}) {
        ForwardProblem several = problem(1, 8, 8);
        several.rows_q = rows;
        EXPECT_EQ(tile_of(several).columns, 16) << "the same for any number of rows but one";
    }
    ForwardProblem p = problem(1, 32, 8);
    p.softcap = 30;
    EXPECT_EQ(decode_choice_of(p).variant, DecodeVariant::options);
    EXPECT_EQ(tile_of(p).columns, 8) << "the least with options";
    p = problem(1, 32, 8);
    p.scale = -0.5f;
    EXPECT_EQ(decode_choice_of(p).variant, DecodeVariant::options);
}

TEST(DecodePlan, KeysInE4m3) {
    ForwardProblem p = problem(4, 32, 8);
    const Sm90DecodePlan plain(p, -1, {});
    p.keys_dtype = DType::e4m3;
    EXPECT_EQ(refusal_of(p), "");
    const Sm90DecodePlan plan(p, -1, {});
    const DecodeChoice& choice = plan.kernel().schedule.choice;
    EXPECT_TRUE(choice.dequantises);
    EXPECT_EQ(choice.tile_index, plain.kernel().schedule.choice.tile_index);
    EXPECT_EQ(plan.kernel().schedule.split_grid, plain.kernel().schedule.split_grid);
    EXPECT_EQ(plan.workspace_bytes(), plain.workspace_bytes());
    EXPECT_EQ(plan.kernel().tile().slots, 2 * plain.kernel().tile().slots);
    EXPECT_NE(plan.describe().find("dequantised in the registers of the warps that compute, by descales of heads"),
              std::string::npos);
    p.k_descale = {true, true, {64 * 8, 8, 1}};
    EXPECT_NE(Sm90DecodePlan(p, -1, {}).describe().find("descales of rows"), std::string::npos);
    p.rows_q = 17;
    EXPECT_EQ(refusal_of(p), "") << "the forward kernel's";
    p.rows_q = 1;
    p.dtype = DType::f32;
    expect_refused(p, "q.dtype is f32");
    p.dtype = DType::e4m3;
    expect_refused(p, "beside e4m3 q");
    p.dtype = DType::bf16;
    p.k.row += 8;
    expect_refused(p, "k's row stride");
    p = problem(4, 32, 8, 512);
    EXPECT_EQ(refusal_of(p), "");
    p.keys_dtype = DType::e4m3;
    expect_refused(p, "k's head dimension is 512; in e4m3, under few rows of q, the sm90 backend supports up to 256");
    p = problem(4, 32, 8, 72);
    EXPECT_EQ(refusal_of(p), "");
    p.keys_dtype = DType::e4m3;
    expect_refused(p, "k's head dimension is 72; in e4m3 the sm90 backend supports multiples of 16");
}

// The same numbers are added up in the same order.
TEST(DecodePlan, TilesForE4m3DifferInTheRingAlone) {
    for (const DecodeTileEntry& entry : kDecodeTiles) {
        DecodeTile tile = for_e4m3(entry.tile);
        EXPECT_GT(tile.slots, entry.tile.slots);
        EXPECT_EQ(tile.slot_bytes() * 2, entry.tile.slot_bytes());
        tile.slots = entry.tile.slots;
        tile.key_bytes = entry.tile.key_bytes;
        EXPECT_EQ(shared_bytes(tile), shared_bytes(entry.tile));
        EXPECT_EQ(tile.levels, entry.tile.levels);
        EXPECT_EQ(tile.columns, entry.tile.columns);
    }
}

TEST(DecodePlan, MoreColumnsAreCutIntoParts) {
    ForwardProblem p = problem(2, 32, 8);
    p.rows_q = 9;  // 36 columns
    const Sm90DecodePlan plan(p, -1, {});
    EXPECT_EQ(plan.kernel().schedule.choice.column_parts, 3);
    EXPECT_EQ(plan.kernel().schedule.heads, 24);
    EXPECT_EQ(plan.kernel().params.heads, 24);
}

TEST(DecodePlan, FillsTheGpuOnce) {
    const auto grid = [](int64_t heads_q, int64_t heads_k, int64_t head_dim = kHeadDim) {
        return Sm90DecodePlan(problem(4, heads_q, heads_k, head_dim), -1, {}).kernel().schedule.split_grid;
    };
    EXPECT_EQ(grid(32, 8), 256) << "32 teams: a power of two that loses little";
    EXPECT_EQ(grid(40, 10), 260) << "26 teams: 16 would lose too much";
    EXPECT_EQ(grid(32, 8, 256), 128) << "one CTA an SM";
    EXPECT_EQ(grid(400, 400), 400) << "at least one team";
}

TEST(DecodePlan, TheWorkspaceFollowsFromTheShapes) {
    const ForwardProblem p = problem(4, 32, 8);
    const Sm90DecodePlan plan(p, -1, {});
    const NodeSets& sets = plan.kernel().params.sets;
    EXPECT_EQ(plan.workspace_bytes(), kDecodeControlBytes + sets.nodes() * (4 * 128 + 4 * 4 + 16) * 4);
    ForwardProblem longer = p;
    longer.batch *= 100;
    longer.pages *= 100;
    longer.rows_k *= 100;
    EXPECT_EQ(Sm90DecodePlan(longer, -1, {}).workspace_bytes(), plan.workspace_bytes());
    ForwardProblem empty = p;
    empty.batch = 0;
    EXPECT_EQ(Sm90DecodePlan(empty, -1, {}).workspace_bytes(), 0);
}

// No call may leave nodes where another looks for counts of zero: of a head they are fewer than teams, and the nodes
// are behind the room of all.
TEST(DecodePlan, OneWorkspaceServesCallsOfAllShapes) {
    for (const int64_t batch : {1, 33, 8192, 100000})
        for (const int64_t heads : {1, 8, 400, 3000})
            for (const int64_t head_dim : {64, 128, 512}) {
                const Sm90DecodePlan plan(problem(batch, 4 * heads, heads, head_dim), -1, {});
                const DecodeSchedule& schedule = plan.kernel().schedule;
                EXPECT_LE((int64_t{schedule.teams.count} - 1) * schedule.heads, kDecodeCounts);
                EXPECT_GE(plan.workspace_bytes(), kDecodeControlBytes);
            }
}

TEST(DecodePlan, PagesOfWholeBoxesAreTheCopyEngines) {
    const auto box_rows = [](int32_t page_size) {
        ForwardProblem p = problem(1, 32, 8);
        p.page_size = page_size;
        return Sm90DecodePlan(p, -1, {}).kernel().schedule.box_rows;
    };
    EXPECT_EQ(box_rows(64), 64);
    EXPECT_EQ(box_rows(256), 64);
    EXPECT_EQ(box_rows(96), 32);
    EXPECT_EQ(box_rows(48), 16);
    EXPECT_EQ(box_rows(8), 8);
    EXPECT_EQ(box_rows(1), 0);
    EXPECT_EQ(box_rows(17), 0);
    const ForwardProblem p = problem(1, 32, 8);
    EXPECT_NE(Sm90DecodePlan(p, -1, {}).describe().find("in boxes of 64 rows"), std::string::npos);
}

}  // namespace
}  // namespace foveal::sm90
