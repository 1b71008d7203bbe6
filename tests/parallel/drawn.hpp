// Drawn problems over ranks: every mask, form, placement and method.
#pragma once

#include <cstdint>
#include <string>

#include "tests/parallel/ranks.hpp"

namespace foveal_testing {

enum class Placing { contiguous, zigzag, scattered };

struct Drawn {
    std::string text;
    int32_t ranks;
    Placing placing;
    foveal_parallel_method method;
    int32_t head_ranks;
    uint32_t seed;

    std::string described() const;
    Ranks on(const foveal_forward_args& whole) const;
};

Drawn draw_case(uint32_t seed);

}  // namespace foveal_testing
