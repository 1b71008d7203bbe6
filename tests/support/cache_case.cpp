#include "tests/support/cache_case.hpp"

#include <map>
#include <set>
#include <sstream>

#include "tests/support/case_words.hpp"

namespace foveal_testing {
namespace {

using Operation = CacheCase::Operation;

constexpr Operation kOperations[] = {Operation::kAppend, Operation::kCopyPages, Operation::kGather};

double bytes_of(foveal_dtype dtype) { return dtype == FOVEAL_F32 ? 4 : 2; }

void read_count(CacheCase& c, std::string_view token, const std::string& name, std::string_view rest) {
    const bool pairs = c.operation == Operation::kCopyPages;
    const std::map<std::string, int64_t CacheCase::*> counts = {
        {"b", &CacheCase::batch},    {pairs ? "n" : "s", &CacheCase::rows}, {"hq", &CacheCase::heads_q},
        {"hk", &CacheCase::heads_k}, {"d", &CacheCase::channels},           {"page", &CacheCase::page_size}};
    const auto found = counts.find(name);
    const bool no_queries = name == "hq" && !c.appends(), no_batch = name == "b" && pairs;
    if (name == "seed") {
        c.seed = parse_number<uint64_t>(token, rest);
    } else if (found == counts.end() || no_queries || no_batch) {
        fail_token(token, std::string("has no meaning in ") + operation_name(c.operation) +
                              "; `foveal bench --help` lists the tokens");
    } else {
        c.*found->second = parse_count(token, rest);
    }
}

bool read_type(CacheCase& c, const std::string& token) {
    for (const foveal_dtype dtype : {FOVEAL_BF16, FOVEAL_F16, FOVEAL_F32}) {
        if (token != dtype_name(dtype)) continue;
        c.dtype = dtype;
        return true;
    }
    return false;
}

}  // namespace

const char* operation_name(Operation operation) {
    switch (operation) {
        case Operation::kAppend:
            return "append";
        case Operation::kCopyPages:
            return "copy_pages";
        case Operation::kGather:
            return "gather";
    }
    return "?";
}

int64_t CacheCase::written_rows() const { return operation == Operation::kCopyPages ? rows * page_size : batch * rows; }

double CacheCase::flops() const {
    return appends() ? 3.0 * static_cast<double>(written_rows() * (heads_q + heads_k) * channels) : 0;
}

double CacheCase::min_bytes() const {
    const int64_t heads = 2 * heads_k + (appends() ? heads_q : 0);
    const double moved = 2 * bytes_of(dtype) * static_cast<double>(written_rows() * heads * channels);
    return moved + (appends() ? 4.0 * static_cast<double>(written_rows() * channels) : 0);
}

bool is_cache_text(std::string_view text) {
    std::istringstream stream{std::string(text)};
    std::string first;
    stream >> first;
    for (const Operation operation : kOperations)
        if (first == operation_name(operation)) return true;
    return false;
}

CacheCase parse_cache_case(std::string_view text) {
    std::istringstream stream{std::string(text)};
    std::string token;
    stream >> token;
    CacheCase c;
    for (const Operation operation : kOperations)
        if (token == operation_name(operation)) c.operation = operation;
    if (!is_cache_text(text)) fail_token(text, "the first word is append, copy_pages or gather");
    std::set<std::string> seen;
    while (stream >> token) {
        const bool is_type = read_type(c, token);
        const auto [name, rest] = split_name(token);
        if (!seen.insert(is_type ? "type" : name).second) fail_token(token, "given twice");
        if (!is_type) read_count(c, token, name, rest);
    }
    if (seen.count("hk") == 0) fail_token(text, "hk must be there");
    if (seen.count(c.operation == Operation::kCopyPages ? "n" : "s") == 0)
        fail_token(text, c.operation == Operation::kCopyPages ? "n must be there" : "s must be there");
    if (seen.count("hq") == 0) c.heads_q = c.heads_k;
    if (c.page_size == 0) fail_token("page0", "a page has at least one row");
    if (c.appends() && c.channels % 2 != 0) fail_token(text, "d must be even: all of a row turns");
    return c;
}

std::string to_text(const CacheCase& c) {
    std::string text = operation_name(c.operation);
    if (c.operation == Operation::kCopyPages) text += " n" + number_text(c.rows);
    if (c.operation != Operation::kCopyPages) text += " b" + number_text(c.batch) + " s" + number_text(c.rows);
    if (c.appends() && c.heads_q != c.heads_k) text += " hq" + number_text(c.heads_q);
    text += " hk" + number_text(c.heads_k) + " d" + number_text(c.channels) + " " + dtype_name(c.dtype) + " page" +
            number_text(c.page_size);
    if (c.seed != 1) text += " seed" + number_text(c.seed);
    return text;
}

}  // namespace foveal_testing
