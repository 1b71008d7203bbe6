// How long a call takes: warm-up, then samples that each last at least a millisecond.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_tool {

// Runs a call on a stream (NULL on the CPU); throws where it fails.
using Call = std::function<void(void* stream)>;

class Timer {
   public:
    Timer() = default;
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    virtual ~Timer() = default;

    // Time from the begin of the first to the end of the last of `calls` calls in a row.
    virtual double elapsed_us(const Call& call, int calls) = 0;
    // Time until a call returns to the host, nothing else being under way. Nothing where that is the whole call.
    virtual std::optional<double> host_us(const Call& call) = 0;
};

// cpu: wall clock. sm90: CUDA events on a non-blocking stream of its own.
std::unique_ptr<Timer> make_timer(foveal_backend backend);

struct TimingPlan {
    double warm_up_s = 1;
    double budget_s = 4;        // all samples together, if that leaves at least kMinRounds
    std::optional<int> rounds;  // exactly so many samples, whatever they cost
};

inline constexpr int kMinRounds = 5;
inline constexpr int kMaxRounds = 20;

struct Timing {
    std::vector<double> call_us;  // one a round: the mean over its calls
    int calls_per_round = 1;
    std::optional<double> host_us;
};

// half_warm is called in the middle of the warm-up: from here on, clock and power are those of this call.
Timing measure(Timer& timer, const Call& call, const TimingPlan& plan, const std::function<void()>& half_warm);

}  // namespace foveal_tool
