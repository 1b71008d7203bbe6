// The words that the texts of cases are made of: names with numbers behind them.
#pragma once

#include <algorithm>
#include <cctype>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/support/case.hpp"

namespace foveal_testing {

[[noreturn]] inline void fail_token(std::string_view token, const std::string& why) {
    throw CaseError("case token '" + std::string(token) + "': " + why);
}

template <class Number>
Number parse_number(std::string_view token, std::string_view digits) {
    Number value{};
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size())
        fail_token(token, "a number must follow the name");
    return value;
}

inline int64_t parse_count(std::string_view token, std::string_view digits) {
    const auto value = parse_number<int64_t>(token, digits);
    if (value < 0) fail_token(token, "must not be negative");
    return value;
}

// "=3,0"
inline std::vector<int64_t> parse_list(std::string_view token, std::string_view rest, bool any_sign = false) {
    if (rest.empty() || rest.front() != '=') fail_token(token, "expected name=number,number,...");
    rest.remove_prefix(1);
    std::vector<int64_t> values;
    while (!rest.empty()) {
        const size_t comma = std::min(rest.find(','), rest.size());
        const std::string_view number = rest.substr(0, comma);
        values.push_back(any_sign ? parse_number<int64_t>(token, number) : parse_count(token, number));
        rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    return values;
}

// "3,0"
inline std::string list_text(const std::vector<int64_t>& values) {
    std::string text;
    for (const int64_t value : values) {
        if (!text.empty()) text += ',';
        text += std::to_string(value);
    }
    return text;
}

// Splits "sq113" into "sq" and "113", "used_q=1,2" into "used_q" and "=1,2".
inline std::pair<std::string, std::string_view> split_name(std::string_view token) {
    size_t n = 0;
    while (n < token.size() && (std::isalpha(static_cast<unsigned char>(token[n])) || token[n] == '_')) ++n;
    return {std::string(token.substr(0, n)), token.substr(n)};
}

// Shortest text that reads back as the same number.
template <class Number>
std::string number_text(Number value) {
    char text[64];
    const auto result = std::to_chars(text, text + sizeof text, value);
    return std::string(text, result.ptr);
}

}  // namespace foveal_testing
