// What the tests of the gradients share: each runs on both backends.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/backward_check.hpp"

namespace foveal_testing {

class BackwardTest : public testing::TestWithParam<foveal_backend> {
   protected:
    void SetUp() override {
        if (GetParam() == FOVEAL_BACKEND_SM90 && !has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    foveal_backend backend() const { return GetParam(); }
    bool on_gpu() const { return backend() == FOVEAL_BACKEND_SM90; }
    std::vector<std::string> types() const {
        return on_gpu() ? std::vector<std::string>{" bf16", " f16"} : std::vector<std::string>{" bf16", " f16", " f32"};
    }

    void expect_right(const std::string& text) const {
        const CheckResult result = check_backward(parse_backward_case("backward " + text), backend());
        if (on_gpu() && result.status == CheckResult::Status::kUnsupported) {  // by name; the CPU has everything
            std::printf("  unsupported: %s: %s\n", text.c_str(), result.message.c_str());
            return;
        }
        EXPECT_TRUE(result.passed()) << text << "\n" << result.message;
    }

    std::unique_ptr<BackwardData> data_of(const std::string& text) const {
        auto data = std::make_unique<BackwardData>(parse_backward_case("backward " + text), backend());
        EXPECT_EQ(data->run_forward(), FOVEAL_OK) << text << ": " << foveal_last_error();
        return data;
    }
    std::unique_ptr<BackwardData> run(const std::string& text) const {
        auto data = data_of(text);
        EXPECT_EQ(data->run(), FOVEAL_OK) << text << ": " << foveal_last_error();
        return data;
    }

    // Of all gradients that the data have.
    static std::vector<std::byte> bytes_of(BackwardData& data) {
        std::vector<std::byte> all;
        const auto append = [&all](GradientTensor& tensor) {
            const std::vector<std::byte> bytes = tensor.bytes();
            all.insert(all.end(), bytes.begin(), bytes.end());
        };
        for (GradientTensor* tensor : {&data.dq, &data.dk, &data.dv}) append(*tensor);
        for (auto* tensor : {&data.dsinks, &data.dbias, &data.dalibi})
            if (*tensor) append(**tensor);
        return all;
    }
};

}  // namespace foveal_testing
