#include "tests/support/merge_case.hpp"

#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "tests/support/case_words.hpp"

namespace foveal_testing {
namespace {

using Layout = MergeCase::Layout;

double bytes_of(foveal_dtype dtype) { return dtype == FOVEAL_F32 ? 4 : 2; }

const std::map<std::string_view, std::function<void(MergeCase&)>>& words() {
    static const std::map<std::string_view, std::function<void(MergeCase&)>> known = {
        {"bf16", [](MergeCase& c) { c.dtype = FOVEAL_BF16; }},
        {"f16", [](MergeCase& c) { c.dtype = FOVEAL_F16; }},
        {"f32", [](MergeCase& c) { c.dtype = FOVEAL_F32; }},
        {"varlen", [](MergeCase& c) { c.varlen = true; }},
        {"lse", [](MergeCase& c) { c.lse = true; }},
        {"odd", [](MergeCase& c) { c.layout = Layout::kOddStrides; }},
        {"bhsd", [](MergeCase& c) { c.layout = Layout::kHeadsFirst; }},
    };
    return known;
}

void read_count(MergeCase& c, std::string_view token, const std::string& name, std::string_view rest) {
    if (name == "b") {
        c.batch = parse_count(token, rest);
    } else if (name == "s") {
        c.rows = parse_count(token, rest);
    } else if (name == "h") {
        c.heads = parse_count(token, rest);
    } else if (name == "d") {
        c.channels = parse_count(token, rest);
    } else if (name == "parts") {
        c.parts = static_cast<int32_t>(parse_count(token, rest));
    } else if (name == "seed") {
        c.seed = parse_number<uint64_t>(token, rest);
    } else {
        fail_token(token, "has no meaning in a merge; `foveal bench --help` lists the tokens");
    }
}

const char* layout_word(Layout layout) {
    switch (layout) {
        case Layout::kPacked:
            return "";
        case Layout::kOddStrides:
            return "odd";
        case Layout::kHeadsFirst:
            return "bhsd";
    }
    return "?";
}

}  // namespace

std::vector<int64_t> MergeCase::out_shape() const {
    return varlen ? std::vector{rows, heads, channels} : std::vector{batch, rows, heads, channels};
}

std::vector<int64_t> MergeCase::lse_shape() const {
    return varlen ? std::vector{heads, rows} : std::vector{batch, heads, rows};
}

size_t MergeCase::lse_index(int64_t i) const {
    const int64_t head = i % heads, row = i / heads % rows, sequence = i / heads / rows;
    return static_cast<size_t>((sequence * heads + head) * rows + row);
}

double MergeCase::flops() const { return 2.0 * parts * static_cast<double>(all_rows() * channels); }

double MergeCase::min_bytes() const {
    const auto row_count = static_cast<double>(all_rows());
    const double elements = row_count * static_cast<double>(channels);
    return parts * (elements * bytes_of(dtype) + 4 * row_count) + elements * bytes_of(out_dtype) +
           (lse ? 4 * row_count : 0);
}

bool is_merge_text(std::string_view text) {
    std::istringstream stream{std::string(text)};
    std::string first;
    stream >> first;
    return first == "merge";
}

MergeCase parse_merge_case(std::string_view text) {
    MergeCase c{.batch = 1, .channels = 128, .dtype = FOVEAL_BF16, .lse = false};
    std::istringstream stream{std::string(text)};
    std::set<std::string> seen;
    std::string token;
    while (stream >> token) {
        const auto word = words().find(token);
        const bool is_word = word != words().end() || token == "merge" || token == "to_f32";
        const auto [name, rest] = split_name(token);
        if (!seen.insert(is_word ? token : name).second) fail_token(token, "given twice");
        if (word != words().end()) word->second(c);
        if (!is_word) read_count(c, token, name, rest);
    }
    const auto has = [&seen](const char* name) { return seen.count(name) > 0; };
    if (!has("merge")) fail_token(text, "the first word of a merge is merge");
    if (!has("s") || !has("h")) fail_token(text, "s and h must be there");
    if (has("bf16") + has("f16") + has("f32") > 1) fail_token(text, "two element types");
    if (has("odd") && has("bhsd")) fail_token(text, "two memory orders");
    if (c.varlen && has("b")) fail_token("varlen", "s counts all tokens: no b");
    c.out_dtype = has("to_f32") ? foveal_dtype{FOVEAL_F32} : c.dtype;
    return c;
}

std::string to_text(const MergeCase& c) {
    std::string text = "merge parts" + number_text(c.parts);
    if (!c.varlen) text += " b" + number_text(c.batch);
    text += " s" + number_text(c.rows) + " h" + number_text(c.heads) + " d" + number_text(c.channels) + " " +
            dtype_name(c.dtype);
    if (c.out_dtype != c.dtype) text += std::string(" to_") + dtype_name(c.out_dtype);
    if (c.varlen) text += " varlen";
    if (c.lse) text += " lse";
    if (c.layout != Layout::kPacked) text += std::string(" ") + layout_word(c.layout);
    if (c.seed != 1) text += " seed" + number_text(c.seed);
    return text;
}

}  // namespace foveal_testing
