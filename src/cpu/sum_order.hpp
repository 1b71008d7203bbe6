// Whose turn it is to add to a sum that several tasks share: parts add in ascending order, so that the sum has the same
// bits whoever computes them and when.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "problem/mask.hpp"

namespace foveal::cpu {

// Parts 0, 1, ... each visit a range of subtiles, in ascending order. A part begins only after those before it have
// begun (parallel_for hands tasks out so), hence waiting ends.
class SumOrder {
   public:
    // visits: the subtiles of each part. given_up: has some part failed, so that nobody is to wait any more?
    SumOrder(std::vector<Range> visits, const std::atomic<bool>& given_up)
        : visits_(std::move(visits)), next_(visits_.size()), given_up_(given_up) {}

    int32_t parts() const { return static_cast<int32_t>(visits_.size()); }
    Range visits_of(int32_t part) const { return visits_[static_cast<size_t>(part)]; }

    // Returns when every part before this one that visits the subtile is done with it, or has given up.
    void wait(int32_t part, int32_t subtile) const {
        for (int32_t before = 0; before < part; ++before) {
            const auto index = static_cast<size_t>(before);
            if (!visits_[index].contains(subtile)) continue;
            while (next_[index].load(std::memory_order_acquire) <= subtile && !given_up_.load())
                std::this_thread::yield();
        }
    }
    void done(int32_t part, int32_t subtile) {
        next_[static_cast<size_t>(part)].store(subtile + 1, std::memory_order_release);
    }

   private:
    const std::vector<Range> visits_;
    std::vector<std::atomic<int32_t>> next_;  // the first subtile that the part is not done with
    const std::atomic<bool>& given_up_;
};

}  // namespace foveal::cpu
