// The plan of a varlen q: which sequences are the decode kernel's and which the forward's, by their rows alone, and in
// which workspace.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "sm90/backend.hpp"
#include "sm90/decode/sequence.hpp"
#include "sm90/varlen/plan.hpp"

namespace foveal::sm90 {
namespace {

// b sequences of `rows` rows together, keys in pages of 64.
ForwardProblem problem(int64_t batch, int64_t rows, int64_t heads_q = 32, int64_t heads_k = 8, int64_t head_dim = 128) {
    ForwardProblem p;
    p.dtype = DType::bf16;
    p.varlen = true;
    p.keys = KeyForm::paged;
    p.has_seqused_k = true;
    p.batch = batch;
    p.rows_q = rows;
    p.rows_k = 64 * 100;
    p.heads_q = heads_q;
    p.heads_k = heads_k;
    p.head_dim = p.head_dim_v = head_dim;
    p.q = p.out = {0, heads_q * head_dim, head_dim};
    p.lse = {0, 1, rows};
    p.pages = 1000;
    p.page_size = 64;
    p.page_entries = p.page_table_stride = 100;
    p.k = p.v = {64 * heads_k * head_dim, heads_k * head_dim, head_dim};
    p.scale = 0.5f;
    return p;
}

ForwardProblem packed(ForwardProblem p) {
    p.keys = KeyForm::varlen;
    p.has_seqused_k = false;
    p.k.batch = p.v.batch = 0;
    return p;
}

Sm90VarlenPlan plan_of(const ForwardProblem& p) { return {p, -1, {}}; }

// Of a sequence with so many rows: the parts that a decode kernel cuts it into, 0: it is another's.
int32_t decoded_parts(const PreparedDecode& decode, int32_t rows) {
    DecodeParams params = decode.params;
    const int32_t ends[] = {0, rows};
    params.lengths_q.cu_seqlens = ends;
    const Sequence sequence = sequence_of(params, 0);
    EXPECT_EQ(sequence.len_q, rows);
    return parts_of(sequence, params, decode.tile().columns);
}

// Heads, head dimension and softcap: tiles of 4, 8 and 16 columns, several parts of a row.
struct Kind {
    int64_t heads_q, heads_k, head_dim;
    float softcap;
};
constexpr Kind kKinds[] = {{8, 8, 64, 0},   {32, 8, 128, 0},  {32, 8, 128, 30}, {64, 8, 128, 0}, {16, 1, 256, 0},
                           {40, 1, 128, 0}, {8, 1, 512, 0},   {6, 2, 512, 0},   {32, 2, 192, 0}, {12, 4, 96, 20},
                           {128, 1, 64, 0}, {16, 8, 256, 30}, {4, 4, 512, 30}};

ForwardProblem problem_of(const Kind& kind, int64_t batch, int64_t rows) {
    ForwardProblem p = problem(batch, rows, kind.heads_q, kind.heads_k, kind.head_dim);
    p.softcap = kind.softcap;
    return p;
}

// By the rows that the device reads.
TEST(VarlenPlan, EverySequenceIsOneKernels) {
    for (const Kind& kind : kKinds) {
        const Sm90VarlenPlan plan = plan_of(problem_of(kind, 4, 1000));
        ASSERT_TRUE(plan.forward());
        for (int32_t rows = 0; rows < 300; ++rows) {
            int32_t takers = rows_of_forward(plan.forward()->params.places, rows) > 0 ? 1 : 0;
            for (const PreparedDecode& decode : plan.decodes()) takers += decoded_parts(decode, rows) > 0 ? 1 : 0;
            EXPECT_EQ(takers, rows > 0 ? 1 : 0) << rows << " rows, " << kind.heads_q << " heads on " << kind.heads_k;
        }
    }
}

// And computed there as if they were dense: with the same tile, in as many parts.
TEST(VarlenPlan, ASequenceGoesWhereADenseQOfItsRowsGoes) {
    for (const Kind& kind : kKinds) {
        const Sm90VarlenPlan plan = plan_of(problem_of(kind, 4, 1000));
        for (int32_t rows = 1; rows < 40; ++rows) {
            ForwardProblem dense = problem_of(kind, 4, rows);
            dense.varlen = false;
            const int32_t left = rows_of_forward(plan.forward()->params.places, rows);
            ASSERT_EQ(sm90::decodes(dense), left == 0) << rows;
            if (left > 0) continue;
            const DecodeChoice choice = decode_choice_of(dense);
            for (const PreparedDecode& decode : plan.decodes()) {
                const int32_t parts = decoded_parts(decode, rows);
                if (parts == 0) continue;
                EXPECT_EQ(decode.schedule.choice.tile_index, choice.tile_index) << rows;
                EXPECT_EQ(decode.schedule.choice.variant, choice.variant);
                EXPECT_EQ(parts, choice.column_parts) << rows;
                EXPECT_LE(parts, most_parts_of(problem_of(kind, 4, 1000), decode.schedule.choice));
            }
        }
    }
}

// What the host knows of the rows spares launches, and changes nothing of how a sequence is computed.
TEST(VarlenPlan, LaunchesWhatMayHaveSequences) {
    const auto launches = [](const ForwardProblem& p) {
        const auto choices = decode_choices_of_varlen(p);
        std::string text = may_have_many_rows(p) ? "forward" : "";
        for (const DecodeChoice& c : choices)
            text += " " + std::to_string(c.least_rows) + "-" + std::to_string(c.most_rows);
        return text;
    };
    EXPECT_EQ(launches(problem(32, 4096)), "forward 1-1 2-8");
    EXPECT_EQ(launches(problem(32, 8)), " 1-1 2-8") << "nobody has nine";
    EXPECT_EQ(launches(problem(32, 1)), " 1-1");
    EXPECT_EQ(launches(problem(1, 1)), " 1-1");
    EXPECT_EQ(launches(problem(1, 5)), " 2-8") << "the only sequence has all rows";
    EXPECT_EQ(launches(problem(1, 4096)), "forward");
    ForwardProblem shortened = problem(1, 4096);
    shortened.has_seqused_q = true;
    EXPECT_EQ(launches(shortened), "forward 1-1 2-8");
    EXPECT_EQ(launches(problem(32, 4096, 128, 8)), "forward 1-2") << "one tile for one row and for two";
    EXPECT_EQ(launches(problem(32, 4096, 64, 1)), "forward 1-1") << "two rows are eight parts";
    ForwardProblem f32 = problem(32, 4096);
    f32.dtype = f32.out_dtype = DType::f32;
    EXPECT_TRUE(decode_choices_of_varlen(f32).empty());
    EXPECT_TRUE(decode_choices_of_varlen(problem(0, 0)).empty());
    EXPECT_TRUE(decode_choices_of_varlen(problem(3, 0)).empty());
}

// How many CTAs decode does not follow from the rows that do not.
TEST(VarlenPlan, PrefillDoesNotEnlargeTheDecode) {
    const Sm90VarlenPlan few = plan_of(problem(32, 100)), many = plan_of(problem(32, 100000));
    ASSERT_EQ(few.decodes().size(), many.decodes().size());
    EXPECT_EQ(few.workspace_bytes(), many.workspace_bytes());
    for (size_t i = 0; i < few.decodes().size(); ++i) {
        EXPECT_EQ(few.decodes()[i].schedule.split_grid, many.decodes()[i].schedule.split_grid);
        EXPECT_EQ(few.decodes()[i].schedule.whole_grid, many.decodes()[i].schedule.whole_grid);
        EXPECT_LE(many.decodes()[i].schedule.split_grid, 264);
    }
}

// They run side by side, so each has counts and nodes of its own, and the counts lie where those of all shapes do.
TEST(VarlenPlan, LaunchesShareNoPartOfTheWorkspace) {
    const Sm90VarlenPlan plan = plan_of(problem(100, 5000));
    int64_t counts = 0, nodes = kDecodeControlBytes;
    ASSERT_LE(plan.decodes().size(), kMostDecodes);
    for (const PreparedDecode& decode : plan.decodes()) {
        EXPECT_EQ(decode.counts, counts);
        EXPECT_EQ(decode.nodes, nodes);
        EXPECT_EQ(decode.schedule.node_bytes, decode.params.sets.nodes() * decode.tile().node_floats() * 4);
        EXPECT_LE(decode.schedule.split_grid, kDecodeCounts);
        counts += 4 * kDecodeCounts;
        nodes += decode.schedule.node_bytes;
    }
    EXPECT_EQ(plan.workspace_bytes(), nodes);
    EXPECT_EQ(plan.workspace_bytes(), plan_of(problem(3000, 5000)).workspace_bytes());
}

// Prompts alone: one launch, without a workspace.
TEST(VarlenPlan, OverPackedKeysTheForwardKernelHasAllRows) {
    for (const int64_t rows : {1, 8, 1000}) {
        const ForwardProblem p = packed(problem(4, rows));
        EXPECT_TRUE(decode_choices_of_varlen(p).empty());
        const auto plan = kBackend.plan_forward(p, -1);
        EXPECT_EQ(plan->workspace_bytes(), 0);
        EXPECT_EQ(plan->describe().find("decode"), std::string::npos);
    }
}

// A kernel waits at its beginning for one that writes the same rows, or that is not of its call.
TEST(VarlenPlan, LaunchesThatWriteOtherRowsRunSideBySide) {
    const auto beside = [](const ForwardProblem& p) {
        std::vector<bool> each;
        const Sm90VarlenPlan plan = plan_of(p);
        for (const PreparedDecode& decode : plan.decodes()) each.push_back(decode.params.beside);
        return each;
    };
    EXPECT_EQ(beside(problem(32, 4096)), (std::vector{true, true})) << "the forward kernel is first";
    EXPECT_EQ(beside(problem(32, 8)), (std::vector{false, true})) << "there is no forward kernel";
}

TEST(VarlenPlan, IsWhatTheBackendPlans) {
    const std::string text = plan_of(problem(4, 1000)).describe();
    EXPECT_EQ(kBackend.plan_forward(problem(4, 1000), -1)->describe(), text);
    for (const char* words :
         {"kernel     sm90 forward", "decode     sequences of few rows", "of 1 row:", "of 2 to 8 rows:", "order "})
        EXPECT_NE(text.find(words), std::string::npos) << words << " is missing in:\n" << text;
    EXPECT_EQ(kBackend.plan_forward(problem(1, 1000), -1)->describe().find("decode"), std::string::npos);
}

TEST(VarlenPlan, ATooSmallWorkspaceIsRefused) {
    const Sm90VarlenPlan plan = plan_of(problem(4, 1000));
    ForwardPointers pointers;
    alignas(16) char byte = 0;
    pointers.workspace = &byte;
    pointers.workspace_bytes = static_cast<uint64_t>(plan.workspace_bytes() - 1);
    try {
        plan.launch(pointers, nullptr);
        FAIL() << "not refused";
    } catch (const Error& error) {
        EXPECT_EQ(error.status(), FOVEAL_INVALID_ARGUMENT);
        EXPECT_NE(std::string(error.what()).find("workspace_bytes"), std::string::npos);
    }
}

// Keys that are more than can be counted, of a batch in tables that have room for them.
TEST(VarlenPlan, RefusesWhatItCannotCount) {
    ForwardProblem p = problem(1 << 16, 1 << 17);
    p.rows_k = int64_t{1} << 22;
    EXPECT_THROW(kBackend.check_supported(p), Error);
    p.batch = 1 << 10;
    EXPECT_NO_THROW(kBackend.check_supported(p));
    ForwardProblem many = packed(p);
    many.batch = 1 << 16;
    EXPECT_NO_THROW(kBackend.check_supported(many)) << "they share the rows";
}

}  // namespace
}  // namespace foveal::sm90
