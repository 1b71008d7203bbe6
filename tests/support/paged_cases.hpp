// Cases with keys in pages, drawn from a seed: what the tests of both backends check.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/draw.hpp"

namespace foveal_testing {

// One problem whose keys lie in three ways.
struct PagedCase {
    std::string problem;  // keys dense, beside varlen queries too
    std::string packed;   // varlen queries: keys packed, else empty
    std::string pages;    // the words that put the problem's keys into pages

    std::string paged() const { return problem + pages; }
};

// What a backend's cases are drawn from, each with a space in front.
struct PagedChoices {
    std::vector<int64_t> page_sizes;
    std::vector<int64_t> most_keys;  // of a sequence; or a page
    std::vector<int64_t> few_queries, any_queries;
    std::vector<std::string> head_dims, types;
};

PagedCase draw_paged_case(uint32_t seed, const PagedChoices& choices);

}  // namespace foveal_testing
