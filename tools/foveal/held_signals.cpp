#include "held_signals.hpp"

#include <atomic>

namespace foveal_tool {
namespace {

// What a handler may touch.
static_assert(std::atomic<int>::is_always_lock_free);
std::atomic<int> arrived{0};

void note(int signal) { arrived = signal; }

}  // namespace

HeldSignals::HeldSignals() {
    arrived = 0;
    struct sigaction hold {};
    hold.sa_handler = note;  // without SA_RESTART: a write that blocks returns
    sigemptyset(&hold.sa_mask);
    for (size_t i = 0; i < kSignals.size(); ++i) {
        sigaction(kSignals[i], nullptr, &before_[i]);
        if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &hold, nullptr);
    }
}

HeldSignals::~HeldSignals() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
    if (const int signal = arrived.exchange(0)) raise(signal);
}

bool HeldSignals::one_arrived() const { return arrived != 0; }

}  // namespace foveal_tool
