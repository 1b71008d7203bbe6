// Ends the process when a kernel hangs: the device would not come back by itself.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>

namespace foveal_testing {

// As long as one lives, what it was made for may take so many seconds. One at a time.
class Watchdog {
   public:
    Watchdog(double seconds, const std::string& what) {
        start();
        state().what = what;
        state().deadline = now() + static_cast<int64_t>(seconds * 1e9);
    }
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog() { state().deadline = kNone; }

   private:
    static constexpr int64_t kNone = INT64_MAX;
    struct State {
        std::atomic<int64_t> deadline{kNone};
        std::string what;
    };

    static State& state() {
        static auto* state = new State;  // the thread below outlives every static
        return *state;
    }
    static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

    static void start() {
        static const bool started = [] {
            std::thread([] {
                for (;; std::this_thread::sleep_for(std::chrono::milliseconds(50))) {
                    if (now() < state().deadline) continue;
                    std::fprintf(stderr, "HANGS: %s\n", state().what.c_str());
                    std::fflush(stderr);
                    _exit(124);
                }
            }).detach();
            return true;
        }();
        (void)started;
    }
};

}  // namespace foveal_testing
