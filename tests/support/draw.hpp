// Choices drawn from a seed: the same on every machine.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace foveal_testing {

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

}  // namespace foveal_testing
