// The lists of cases, and the texts of merges.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "tests/support/cache_case.hpp"
#include "tests/support/merge_case.hpp"
#include "tests/support/suites.hpp"

namespace foveal_testing {
namespace {

std::string canonical(const std::string& text) {
    if (is_cache_text(text)) return to_text(parse_cache_case(text));
    return is_merge_text(text) ? to_text(parse_merge_case(text)) : to_text(parse_case(text));
}

TEST(Suites, CorrectnessListsReadBackAndHoldNoCaseTwice) {
    for (const foveal_backend backend : {FOVEAL_BACKEND_CPU, FOVEAL_BACKEND_SM90}) {
        for (const std::string& name : correctness_suite_names()) {
            std::set<std::string> seen;
            for (const Case& c : correctness_suite(name, backend).cases) {
                const std::string text = to_text(c);
                EXPECT_EQ(parse_case(text), c) << text;
                EXPECT_TRUE(seen.insert(text).second) << name << " holds twice: " << text;
            }
            EXPECT_FALSE(seen.empty()) << name;
        }
    }
    EXPECT_THROW(correctness_suite("seed", FOVEAL_BACKEND_CPU), UnknownSuite);
}

// Results files hold these texts: what a case is printed as must be what the list says.
TEST(Suites, SpeedListsAreCanonicalAndHoldNoCaseTwice) {
    std::set<std::string> names(correctness_suite_names().begin(), correctness_suite_names().end());
    for (const SpeedSuite& suite : speed_suites()) {
        EXPECT_TRUE(names.insert(suite.name).second) << "two suites are called " << suite.name;
        EXPECT_EQ(&speed_suite(suite.name), &suite);
        std::set<std::string> seen;
        for (const std::string& text : suite.texts) {
            EXPECT_EQ(canonical(text), text) << suite.name;
            EXPECT_TRUE(seen.insert(text).second) << suite.name << " holds twice: " << text;
        }
        EXPECT_FALSE(seen.empty()) << suite.name;
    }
    EXPECT_THROW(speed_suite("correctness"), UnknownSuite);
}

// The table that speed is judged by: names and shapes as the results files have them.
TEST(Suites, SeedIsTheTableOfTheTargets) {
    const SpeedSuite& seed = speed_suite("seed");
    ASSERT_EQ(seed.texts.size(), 6u);
    EXPECT_EQ(seed.texts.back(), "b128 s8192 hq32 hk8 d128 bf16 causal");
}

// Drawn once: a length that changed would make a committed result one of another problem.
TEST(Suites, VarlenLengthsAreThoseOfTheCommittedResults) {
    const auto total = [](const char* suite, size_t row) { return parse_case(speed_suite(suite).texts[row]).rows_q; };
    EXPECT_EQ(total("varlen", 0), 38571);
    EXPECT_EQ(total("chunk", 9), 17069);
    EXPECT_EQ(total("chunk", 10), 18005);
    EXPECT_EQ(total("chunk", 11), 35134);
}

TEST(MergeCase, ReadsAndWritesEveryToken) {
    const MergeCase c = parse_merge_case("merge parts4 b8 s4096 h32 d64 bf16 to_f32 lse odd seed7");
    EXPECT_EQ(c.parts, 4);
    EXPECT_EQ(c.batch, 8);
    EXPECT_EQ(c.rows, 4096);
    EXPECT_EQ(c.heads, 32);
    EXPECT_EQ(c.channels, 64);
    EXPECT_EQ(c.dtype, FOVEAL_BF16);
    EXPECT_EQ(c.out_dtype, FOVEAL_F32);
    EXPECT_EQ(c.layout, MergeCase::Layout::kOddStrides);
    EXPECT_EQ(c.seed, 7u);
    EXPECT_TRUE(c.lse);
    for (const char* text : {"merge parts4 b8 s4096 h32 d64 bf16 to_f32 lse odd seed7",
                             "merge parts2 s70 h3 d128 f16 varlen bhsd", "merge parts1 b1 s1 h1 d1 f32"})
        EXPECT_EQ(to_text(parse_merge_case(text)), text);
    EXPECT_EQ(to_text(parse_merge_case("merge s9 h2")), "merge parts2 b1 s9 h2 d128 bf16");
    EXPECT_FALSE(is_merge_text("b1 s9 h2"));
}

TEST(CacheCase, ReadsAndWritesEveryToken) {
    const CacheCase c = parse_cache_case("append page16 b3 s5 hq8 hk2 d64 f16 seed7");
    EXPECT_EQ(c, (CacheCase{CacheCase::Operation::kAppend, 3, 5, 8, 2, 64, 16, FOVEAL_F16, 7}));
    for (const char* text : {"append b3 s5 hq8 hk2 d64 f16 page16 seed7", "append b1 s1 hk2 d128 bf16 page64",
                             "copy_pages n9 hk2 d64 f32 page1", "gather b4 s700 hk1 d64 bf16 page64"})
        EXPECT_EQ(to_text(parse_cache_case(text)), text);
    EXPECT_FALSE(is_cache_text("b1 s9 h2"));
    EXPECT_EQ(parse_cache_case("copy_pages n9 hk2 d64 f32 page4").min_bytes(), 9.0 * 4 * 2 * 64 * 4 * 2 * 2);
    EXPECT_EQ(parse_cache_case("gather b4 s7 hk1 d64 bf16").min_bytes(), 4.0 * 7 * 64 * 2 * 2 * 2);
    EXPECT_EQ(parse_cache_case("append b4 s7 hq2 hk1 d64 bf16").min_bytes(), 28.0 * 64 * (4 * 2 * 2 + 4));
    EXPECT_EQ(parse_cache_case("append b4 s7 hq2 hk1 d64 bf16").flops(), 28.0 * 3 * 64 * 3);
}

TEST(CacheCase, WhatIsNoneIsSaidSo) {
    for (const auto& [text, named] : {std::pair{"b1 s9 h2", "append, copy_pages or gather"},
                                      {"append s9", "hk"},
                                      {"append hk2", "s must"},
                                      {"copy_pages s9 hk2", "'s9'"},
                                      {"copy_pages n9 b2 hk2", "'b2'"},
                                      {"gather s9 hq4 hk2", "'hq4'"},
                                      {"gather s9 hk2 causal", "'causal'"},
                                      {"gather s9 hk2 bf16 f16", "given twice"},
                                      {"append s9 hk2 d7", "d must be even"},
                                      {"append s9 hk2 page0", "page0"}}) {
        try {
            parse_cache_case(text);
            ADD_FAILURE() << "accepted: " << text;
        } catch (const CaseError& error) {
            EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << text << ": " << error.what();
        }
    }
}

TEST(MergeCase, WhatIsNoMergeIsSaidSo) {
    const std::pair<const char*, const char*> wrong[] = {
        {"b1 s9 h2", "merge"},
        {"merge h2", "s and h"},
        {"merge s9 h2 causal", "'causal'"},
        {"merge s9 h2 hk2", "'hk2'"},
        {"merge s9 h2 s8", "'s8'"},
        {"merge s9 h2 partsx", "'partsx'"},
        {"merge s9 h2 bf16 f16", "two element types"},
        {"merge s9 h2 to_f32 to_f32", "given twice"},
        {"merge b2 s9 h2 varlen", "varlen"},
        {"merge s9 h2 odd bhsd", "two memory orders"},
    };
    for (const auto& [text, named] : wrong) {
        try {
            parse_merge_case(text);
            ADD_FAILURE() << "accepted: " << text;
        } catch (const CaseError& error) {
            EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << text << ": " << error.what();
        }
    }
}

TEST(MergeCase, CountsFlopsAndBytes) {
    const MergeCase c = parse_merge_case("merge parts3 b2 s5 h4 d8 bf16 to_f32 lse");
    EXPECT_EQ(c.flops(), 2.0 * 3 * (2 * 5 * 4 * 8));
    EXPECT_EQ(c.min_bytes(), 3.0 * (2 * 5 * 4) * (8 * 2 + 4) + (2 * 5 * 4) * (8 * 4 + 4));
    EXPECT_EQ(parse_merge_case("merge parts3 b2 s5 h4 d8 bf16").min_bytes(),
              3.0 * (2 * 5 * 4) * (8 * 2 + 4) + (2 * 5 * 4) * 8 * 2);
}

}  // namespace
}  // namespace foveal_testing
