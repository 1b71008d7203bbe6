#include "tests/support/backward_case.hpp"

#include <sstream>

namespace foveal_testing {

bool is_backward_text(std::string_view text) {
    std::istringstream words{std::string(text)};
    std::string first;
    return static_cast<bool>(words >> first) && first == "backward";
}

BackwardCase parse_backward_case(std::string_view text) {
    if (!is_backward_text(text)) throw CaseError("the text of a gradient begins with \"backward\"");
    BackwardCase c;
    std::istringstream words{std::string(text)};
    std::string token, rest;
    words >> token;
    while (words >> token) {
        if (token == "dlse") {
            c.dlse = true;
        } else if (token == "dbias_f32") {
            c.dbias_f32 = true;
        } else {
            rest += token + ' ';
        }
    }
    c.forward = parse_case(rest);
    c.forward.lse = true;
    if (c.dbias_f32 && !c.forward.bias) throw CaseError("dbias_f32: there is no bias");
    return c;
}

std::string to_text(const BackwardCase& c) {
    return "backward " + to_text(c.forward) + (c.dlse ? " dlse" : "") + (c.dbias_f32 ? " dbias_f32" : "");
}

}  // namespace foveal_testing
