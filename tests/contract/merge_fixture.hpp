// What the tests of merging share: each runs on both backends (contract 1.5).
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/merge_data.hpp"

namespace foveal_testing {

using foveal::Part;

class Merge : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (GetParam() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    foveal_backend backend() const { return GetParam(); }
    foveal::MergeOptions options(const foveal::Tensor& lse = {}) const {
        return {.lse = lse, .backend = static_cast<foveal::Backend>(GetParam())};
    }
};

// Merges parts drawn for the case, and judges out, lse and what lies around them.
inline void expect_merges(foveal_backend backend, const MergeCase& c, const foveal::MergeOptions& options) {
    SCOPED_TRACE(to_text(c));
    const PartialValues values = draw_parts(c, 1);
    MergeData data(backend, c, values);
    foveal::MergeOptions with_lse = options;
    with_lse.lse = data.lse.view();
    foveal::merge(data.parts(), data.out.view(), with_lse);
    EXPECT_EQ(judge_merged(c, values, data.out.values(), data.lse.values()).failure, "");
    EXPECT_TRUE(data.out.surroundings_untouched());
    EXPECT_TRUE(data.lse.surroundings_untouched());
}

}  // namespace foveal_testing
