// A loop over independent items on all cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace foveal_testing {

// Calls body(item, worker) for items 0 .. items - 1; worker < worker_count(items). Rethrows what a body throws.
inline int64_t worker_count(int64_t items) {
    return std::clamp<int64_t>(static_cast<int64_t>(std::thread::hardware_concurrency()), 1,
                               std::max<int64_t>(items, 1));
}

template <class Body>
void parallel_for(int64_t items, const Body& body) {
    std::atomic<int64_t> next{0};
    std::vector<std::exception_ptr> errors(static_cast<size_t>(worker_count(items)));
    const auto work = [&](int64_t worker) {
        try {
            for (int64_t item = next++; item < items; item = next++) body(item, worker);
        } catch (...) {
            errors[static_cast<size_t>(worker)] = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int64_t worker = 1; worker < worker_count(items); ++worker) threads.emplace_back(work, worker);
    work(0);
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace foveal_testing
