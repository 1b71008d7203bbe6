#include "tests/parallel/drawn.hpp"

#include <random>
#include <vector>

#include "tests/support/draw.hpp"

namespace foveal_testing {
namespace {

const char* name_of(Placing placing) {
    return placing == Placing::contiguous ? "contiguous" : placing == Placing::zigzag ? "zigzag" : "scattered";
}

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

}  // namespace

std::string Drawn::described() const {
    return "seed " + std::to_string(seed) + ": " + text + " over " + std::to_string(ranks) + " ranks, " +
           name_of(placing) + ", method " + std::to_string(method) + ", head_ranks " + std::to_string(head_ranks);
}

Ranks Drawn::on(const foveal_forward_args& whole) const {
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

}  // namespace foveal_testing
