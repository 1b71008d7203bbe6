// Attention over ranks is that of one device (contract 1.15): every mask, method and placement, on the CPU backend.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "foveal/foveal.hpp"
#include "tests/cpu/fixture.hpp"
#include "tests/parallel/drawn.hpp"
#include "tests/parallel/ranks.hpp"
#include "tests/support/number_formats.hpp"

namespace foveal_testing {
namespace {

CheckResult check(const Drawn& drawn, const std::function<void(Ranks&)>& change = {}) {
    return check_over_ranks(drawn.text, [&](const foveal_forward_args& whole) {
        Ranks ranks = drawn.on(whole);
        if (change) change(ranks);
        return ranks;
    });
}

constexpr uint32_t kForwardCases = 600;

TEST(Contract_1_15, Grid) {
    for (uint32_t seed = 1; seed <= kForwardCases; ++seed) {
        const Drawn drawn = draw_case(seed);
        const CheckResult result = check(drawn);
        EXPECT_TRUE(result.passed()) << drawn.described() << "\n" << result.message;
    }
}

// What parts are: not rounded, so that merging them rounds once. Many queries and few take different ways.
TEST(Contract_1_15, PartsInF32) {
    for (const std::string type : {"bf16", "f16"}) {
        for (const char* const problem :
             {"b2 s170 hq4 hk2 d32 dv40 causal sinks ", "b2 sq3 sk900 hq4 hk2 d64 ", "b1 sq5 sk0 h2 d32 "}) {
            const auto data = on_cpu(problem + type + " lse");
            ASSERT_EQ(foveal_forward(&data->args(), nullptr), FOVEAL_OK) << foveal_last_error();
            const Case& c = data->the_case();
            std::vector<float> wide(static_cast<size_t>(c.batch * c.rows_q * c.heads_q * c.head_dim_v), NAN);
            foveal_forward_args args = data->args();
            args.out =
                foveal::Tensor::packed(wide.data(), foveal::DType::f32, {c.batch, c.rows_q, c.heads_q, c.head_dim_v});
            ASSERT_EQ(foveal_forward(&args, nullptr), FOVEAL_OK) << foveal_last_error();
            for (int64_t sequence = 0; sequence < c.batch; ++sequence) {
                for (int64_t head = 0; head < c.heads_q; ++head) {
                    const std::vector<float> rounded = rows_of(*data, TensorId::kOut, sequence, head);
                    for (size_t i = 0; i < rounded.size(); ++i) {
                        const auto row = static_cast<int64_t>(i) / c.head_dim_v,
                                   channel = static_cast<int64_t>(i) % c.head_dim_v;
                        const int64_t at = ((sequence * c.rows_q + row) * c.heads_q + head) * c.head_dim_v + channel;
                        ASSERT_EQ(round_to(c.dtype, wide[static_cast<size_t>(at)]), rounded[i]) << problem << type;
                    }
                }
            }
            args.backend = FOVEAL_BACKEND_SM90;
            EXPECT_EQ(foveal_supports(&args), FOVEAL_OK) << foveal_last_error();
        }
    }
}

// The grid bites: some case fails where a rank's call ignores or doubles something.
TEST(Contract_1_15, TheGridNoticesWhatIsIgnored) {
    const struct {
        const char* name;
        void (*drop)(foveal_forward_args&);
    } mutations[] = {
        {"window_left", [](foveal_forward_args& args) { args.window_left = FOVEAL_UNLIMITED; }},
        {"window_right", [](foveal_forward_args& args) { args.window_right = FOVEAL_UNLIMITED; }},
        {"alignment", [](foveal_forward_args& args) { args.alignment = 1 - args.alignment; }},
        {"chunk", [](foveal_forward_args& args) { args.chunk = 0; }},
        {"sinks", [](foveal_forward_args& args) { args.sinks = {}; }},
        {"alibi_slopes", [](foveal_forward_args& args) { args.alibi_slopes = {}; }},
        {"bias", [](foveal_forward_args& args) { args.bias = {}; }},
        {"mask", [](foveal_forward_args& args) { args.mask = {}; }},
    };
    for (const auto& mutation : mutations) {
        bool noticed = false;
        for (uint32_t seed = 1; seed <= 150 && !noticed; ++seed) {
            const Drawn drawn = draw_case(seed);
            const Forward mutated = [&](const foveal_forward_args& whole) {
                foveal_forward_args changed = whole;
                mutation.drop(changed);
                return run_ranks(changed, drawn.on(whole))[0].status;
            };
            noticed = !check_case(parse_case(drawn.text), FOVEAL_BACKEND_CPU, mutated).passed();
        }
        EXPECT_TRUE(noticed) << mutation.name;
    }
}

}  // namespace
}  // namespace foveal_testing
