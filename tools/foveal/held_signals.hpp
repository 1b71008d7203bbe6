// Signals that end a process, held back while something must not be left half done.
#pragma once

#include <array>
#include <csignal>

namespace foveal_tool {

// While it lives, an interrupt (Ctrl-C), a hang-up, a request to end and the end of the CPU time only interrupt
// blocking calls; at its end the one that arrived takes its course, as if it came then. What the process ignores stays
// ignored. One at a time.
class HeldSignals {
   public:
    HeldSignals();
    HeldSignals(const HeldSignals&) = delete;
    HeldSignals& operator=(const HeldSignals&) = delete;
    ~HeldSignals();

    bool one_arrived() const;

   private:
    static constexpr std::array<int, 5> kSignals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU};
    std::array<struct sigaction, kSignals.size()> before_{};
};

}  // namespace foveal_tool
