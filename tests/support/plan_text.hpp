// What the plan says of a case.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/support/case.hpp"
#include "tests/support/case_data.hpp"

namespace foveal_testing {

// The text of the sm90 plan for a generic H200.
inline std::string plan_of(const std::string& text) {
    const foveal_forward_args args = shape_args(parse_case(text), FOVEAL_BACKEND_SM90);
    foveal_plan* plan = nullptr;
    EXPECT_EQ(foveal_plan_create(&args, -1, &plan), FOVEAL_OK) << text << ": " << foveal_last_error();
    const std::unique_ptr<foveal_plan, decltype(&foveal_plan_destroy)> owner(plan, &foveal_plan_destroy);
    char description[4096] = "";
    EXPECT_EQ(foveal_plan_describe(plan, description, sizeof description, nullptr), FOVEAL_OK);
    return description;
}

inline void expect_plan(const std::string& text, const std::string& words) {
    const std::string plan = plan_of(text);
    EXPECT_NE(plan.find(words), std::string::npos) << text << " lacks '" << words << "':\n" << plan;
}

}  // namespace foveal_testing
