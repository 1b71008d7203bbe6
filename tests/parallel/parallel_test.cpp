// Attention over ranks is that of one device (contract 1.15): every mask, method and placement, on the CPU backend.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "foveal/foveal.hpp"
#include "tests/cpu/fixture.hpp"
#include "tests/parallel/ranks.hpp"
#include "tests/support/number_formats.hpp"

namespace foveal_testing {
namespace {

enum class Placing { contiguous, zigzag, scattered };

const char* name_of(Placing placing) {
    return placing == Placing::contiguous ? "contiguous" : placing == Placing::zigzag ? "zigzag" : "scattered";
}

struct Drawn {
    std::string text;
    int32_t ranks;
    Placing placing;
    foveal_parallel_method method;
    int32_t head_ranks;
    uint32_t seed;

    std::string described() const {
        return "seed " + std::to_string(seed) + ": " + text + " over " + std::to_string(ranks) + " ranks, " +
               name_of(placing) + ", method " + std::to_string(method) + ", head_ranks " + std::to_string(head_ranks);
    }
    Ranks on(const foveal_forward_args& whole) const {
        std::mt19937 random(seed);
        const Lengths lengths = lengths_of(whole);
        const auto spans = [&](const std::vector<int64_t>& of) {
            if (placing == Placing::scattered) return scattered(random, of, ranks);
            return placed(placing == Placing::zigzag ? FOVEAL_ZIGZAG : FOVEAL_CONTIGUOUS, of, ranks);
        };
        return {.spans_q = spans(lengths.q),
                .spans_k = spans(lengths.k),
                .count = ranks,
                .method = method,
                .head_ranks = head_ranks};
    }
};

CheckResult check(const Drawn& drawn, const std::function<void(Ranks&)>& change = {}) {
    return check_over_ranks(drawn.text, [&](const foveal_forward_args& whole) {
        Ranks ranks = drawn.on(whole);
        if (change) change(ranks);
        return ranks;
    });
}

class Draw {
   public:
    explicit Draw(uint32_t seed) : random_(seed) {}
    template <class T>
    T of(const std::vector<T>& values) {
        return values[random_() % values.size()];
    }
    bool one_in(uint32_t n) { return random_() % n == 0; }

   private:
    std::mt19937 random_;
};

std::string draw_scores(Draw& draw, bool dense) {
    std::string text =
        draw.of<std::string>({" full", " causal", " causal", " causal", " left40 causal", " left9 right3", " left100",
                              " right20", " chunk64 causal", " chunk50", " left30 chunk100"});
    if (draw.one_in(5)) text += " topleft";
    if (draw.one_in(4)) text += " softcap20";
    if (draw.one_in(4)) text += draw.of<std::string>({" alibi", " alibi_b"});
    if (draw.one_in(3)) text += draw.of<std::string>({" sinks", " sinks5"});
    if (dense && draw.one_in(5))
        text += draw.of<std::string>({" bias=bh", " bias_f32=11", " bias=b1q1", " bias_inf bias=bh"});
    if (dense && draw.one_in(5)) text += draw.of<std::string>({" mask=b1", " mask=1hqk"});
    return text + (draw.one_in(3) ? "" : " lse") + draw.of<std::string>({"", "", " sd10"});
}

Drawn draw_case(uint32_t seed) {
    Draw draw(seed);
    const bool dense = draw.one_in(2);
    const auto ranks = draw.of<int32_t>({1, 2, 2, 3, 4, 7, 8});
    std::string text;
    if (dense) {
        text = draw.of<std::string>(
            {"b1 s257", "b2 s128", "b1 s200", "b2 sq70 sk203", "b1 sq150 sk90", "b3 s9", "b1 s400"});
    } else {
        text = draw.of<std::string>({"varlen qlens=90,0,130,3 klens=90,0,130,3", "varlen qlens=300 klens=300",
                                     "varlen qlens=40,70,1 klens=90,70,200", "varlen qlens=17,0,5 klens=0,60,5",
                                     "varlen qlens=64,64,64,64,64 klens=64,64,64,64,64", "varlen qlens=0,0 klens=0,5"});
    }
    const bool ulysses = draw.one_in(4) && ranks != 7 && ranks != 3;
    text += ulysses ? draw.of<std::string>({" hq8 hk8", " hq8 hk2", " hq8 hk1"})
                    : draw.of<std::string>({" hq4 hk2", " hq3 hk1", " hq2 hk2", " hq6 hk2"});
    text += draw.of<std::string>({" d64", " d24 dv40", " d32"}) + draw.of<std::string>({" f32", " bf16", " f16"});
    text += draw_scores(draw, dense && !ulysses);
    const auto method = ulysses ? foveal_parallel_method{FOVEAL_PARALLEL_ULYSSES}
                                : draw.of<foveal_parallel_method>({FOVEAL_PARALLEL_RING, FOVEAL_PARALLEL_RING,
                                                                   FOVEAL_PARALLEL_ALL_GATHER, FOVEAL_PARALLEL_AUTO});
    const int32_t head_ranks = ulysses && ranks == 4 && draw.one_in(2)   ? 2
                               : ulysses && ranks == 8 && draw.one_in(2) ? 4
                                                                         : 0;
    return {text,   ranks,      draw.of<Placing>({Placing::contiguous, Placing::zigzag, Placing::scattered}),
            method, head_ranks, seed};
}

constexpr uint32_t kCases = 600;

TEST(Contract_1_15, Grid) {
    for (uint32_t seed = 1; seed <= kCases; ++seed) {
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
            EXPECT_EQ(foveal_supports(&args), FOVEAL_UNSUPPORTED);
            EXPECT_NE(std::string(foveal_last_error()).find("out.dtype is f32"), std::string::npos);
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
