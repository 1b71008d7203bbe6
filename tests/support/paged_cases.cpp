#include "tests/support/paged_cases.hpp"

#include <algorithm>

namespace foveal_testing {
namespace {

std::string list(const char* name, const std::vector<int64_t>& numbers) {
    std::string text;
    for (const int64_t number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
    return std::string(" ") + name + "=" + text;
}

// Lengths around the ends of pages and of blocks of keys.
std::vector<int64_t> draw_lengths(Draw& draw, int64_t page, int64_t most) {
    std::vector<int64_t> lengths;
    for (int i = 0; i < 3; ++i)
        lengths.push_back(std::min(most, draw.of<int64_t>({0, 1, page - 1, page, page + 1, 2 * page, 3 * page - 1, 63,
                                                           64, 65, 200, 517, most})));
    return lengths;
}

std::string draw_scores(Draw& draw, bool varlen) {
    std::string text = draw.of<std::string>(
        {" full", " causal", " causal", " left40 causal", " left9 right3", " chunk64 causal", " left70"});
    if (draw.one_in(4)) text += " softcap20";
    if (draw.one_in(4)) text += draw.of<std::string>({" alibi", " alibi_b"});
    if (draw.one_in(4)) text += " sinks";
    if (draw.one_in(3)) text += " tree";
    if (!varlen && draw.one_in(6)) text += draw.of<std::string>({" bias=bh", " bias_f32=11", " bias=b1q1"});
    if (!varlen && draw.one_in(6)) text += draw.of<std::string>({" mask=b1", " mask=1hqk"});
    if (draw.one_in(3)) text += " qoff=" + draw.of<std::string>({"0,5,-3", "60,100,63", "-20,517,300"});
    return text + (draw.one_in(2) ? " lse" : "");
}

}  // namespace

PagedCase draw_paged_case(uint32_t seed, const PagedChoices& choices) {
    Draw draw(seed);
    const auto page = draw.of(choices.page_sizes);
    const bool varlen = draw.one_in(2);
    std::vector<int64_t> most_keys = choices.most_keys;
    most_keys.push_back(page);
    const int64_t most = draw.of(most_keys);
    const std::vector<int64_t> keys = draw_lengths(draw, page, most);
    std::string queries, rest;
    if (varlen)
        queries = "varlen" + list("qlens", {draw.of(choices.few_queries), draw.of(choices.any_queries),
                                            draw.of(choices.few_queries)});
    else
        queries = "b3 sq" + std::to_string(draw.of(draw.one_in(4) ? choices.any_queries : choices.few_queries));
    rest += draw.of<std::string>({" hq1 hk1", " hq4 hk2", " hq8 hk1", " hq6 hk2", " hq32 hk1"});
    const std::string head_dim = draw.of(choices.head_dims);
    rest += head_dim + draw.of(choices.types) + draw_scores(draw, varlen);
    rest += draw.of<std::string>({"", "", " pad"});
    if (draw.one_in(2)) rest += " bhsd";  // NHD or HND
    PagedCase c;
    c.problem = queries + " sk" + std::to_string(most) + list("used_k", keys) + rest;
    if (varlen) c.packed = queries + list("klens", keys) + rest;
    c.pages = " page" + std::to_string(page) + draw.of<std::string>({"", " csr"});
    if (head_dim.find("dv") == std::string::npos && draw.one_in(3)) c.pages += " pool";
    return c;
}

}  // namespace foveal_testing
