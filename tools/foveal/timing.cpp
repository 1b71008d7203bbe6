#include "timing.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "statistics.hpp"

#if FOVEAL_HAS_CUDA
#include "tests/support/device_buffer.hpp"
#endif

namespace foveal_tool {
namespace {

constexpr double kMinSampleUs = 1000;
constexpr int kHostCalls = 50;

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class WallTimer final : public Timer {
   public:
    double elapsed_us(const Call& call, int calls) override {
        const Clock::time_point start = Clock::now();
        for (int i = 0; i < calls; ++i) call(nullptr);
        return microseconds_since(start);
    }
    std::optional<double> host_us(const Call&) override { return std::nullopt; }
};

#if FOVEAL_HAS_CUDA
using foveal_testing::require_cuda;

class CudaTimer final : public Timer {
   public:
    CudaTimer() {
        require_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        require_cuda(cudaEventCreate(&begin_), "cudaEventCreate");
        require_cuda(cudaEventCreate(&end_), "cudaEventCreate");
    }
    ~CudaTimer() override {
        (void)cudaEventDestroy(begin_);
        (void)cudaEventDestroy(end_);
        (void)cudaStreamDestroy(stream_);
    }

    double elapsed_us(const Call& call, int calls) override {
        require_cuda(cudaEventRecord(begin_, stream_), "cudaEventRecord");
        for (int i = 0; i < calls; ++i) call(stream_);
        require_cuda(cudaEventRecord(end_, stream_), "cudaEventRecord");
        require_cuda(cudaEventSynchronize(end_), "timed calls");
        float milliseconds = 0;
        require_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
        return 1000.0 * static_cast<double>(milliseconds);
    }

    std::optional<double> host_us(const Call& call) override {
        require_cuda(cudaStreamSynchronize(stream_), "timed calls");
        const Clock::time_point start = Clock::now();
        call(stream_);
        return microseconds_since(start);
    }

   private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t begin_ = nullptr, end_ = nullptr;
};
#endif

int calls_for(double call_us) {
    return static_cast<int>(std::clamp(std::ceil(kMinSampleUs / std::max(call_us, 0.1)), 1.0, 10000.0));
}

// Repeats samples for plan.warm_up_s, at least two. Returns the time of a call when warm.
double warm_up(Timer& timer, const Call& call, double warm_up_s, const std::function<void()>& half_warm) {
    const Clock::time_point start = Clock::now();
    // The first call also pays for what is set up once.
    (void)timer.elapsed_us(call, 1);
    double call_us = timer.elapsed_us(call, 1);
    bool past_half = false;
    while (microseconds_since(start) < warm_up_s * 1e6) {
        if (!past_half && microseconds_since(start) > warm_up_s * 0.5e6) {
            half_warm();
            past_half = true;
        }
        const int calls = calls_for(call_us);
        call_us = timer.elapsed_us(call, calls) / calls;
    }
    if (!past_half) half_warm();
    return call_us;
}

}  // namespace

std::unique_ptr<Timer> make_timer(foveal_backend backend) {
#if FOVEAL_HAS_CUDA
    if (backend == FOVEAL_BACKEND_SM90) return std::make_unique<CudaTimer>();
#endif
    (void)backend;
    return std::make_unique<WallTimer>();
}

Timing measure(Timer& timer, const Call& call, const TimingPlan& plan, const std::function<void()>& half_warm) {
    Timing timing;
    const double call_us = warm_up(timer, call, plan.warm_up_s, half_warm);
    timing.calls_per_round = calls_for(call_us);
    const double affordable = plan.budget_s * 1e6 / (call_us * timing.calls_per_round);
    const int rounds = plan.rounds.value_or(static_cast<int>(std::clamp<double>(affordable, kMinRounds, kMaxRounds)));
    for (int round = 0; round < rounds; ++round) {
        timing.call_us.push_back(timer.elapsed_us(call, timing.calls_per_round) / timing.calls_per_round);
    }
    std::vector<double> host_us;
    for (int i = 0; i < kHostCalls; ++i) {
        const std::optional<double> sample = timer.host_us(call);
        if (!sample) return timing;
        host_us.push_back(*sample);
    }
    timing.host_us = median(host_us);
    return timing;
}

}  // namespace foveal_tool
