// cpu/threads.hpp and cpu/thread_count.hpp
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"
#include "problem/forward.hpp"

namespace foveal::cpu {
namespace {

class Variable {
   public:
    Variable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
    ~Variable() { unsetenv(name_); }

   private:
    const char* name_;
};

class ThreadsVariable : public Variable {
   public:
    explicit ThreadsVariable(const char* value) : Variable("FOVEAL_NUM_THREADS", value) {}
};

TEST(CpuThreads, EveryIndexOnce) {
    for (const int threads : {1, 2, 3, 16}) {
        for (const int64_t count : {0, 1, 2, 5, 1000}) {
            std::vector<std::atomic<int>> times(static_cast<size_t>(count));
            parallel_for(count, threads, [&](int64_t i) { ++times[static_cast<size_t>(i)]; });
            for (const std::atomic<int>& n : times) ASSERT_EQ(n.load(), 1) << threads << " threads, " << count;
        }
    }
}

// Runs the work on as many threads as it is asked for, its own, and counts how often it was asked.
void run_on_own_threads(void (*work)(void*), void* job, int32_t threads, void* times) {
    ++*static_cast<std::atomic<int>*>(times);
    std::vector<std::thread> others;
    for (int32_t i = 1; i < threads; ++i) others.emplace_back(work, job);
    work(job);
    for (std::thread& other : others) other.join();
}

class Runner {
   public:
    explicit Runner(ThreadRunner runner, void* context = nullptr) { set_thread_runner(runner, context); }
    ~Runner() { set_thread_runner(nullptr, nullptr); }
};

int sum_to_99(int threads) {
    std::atomic<int> sum{0};
    parallel_for(100, threads, [&](int64_t i) { sum += static_cast<int>(i); });
    return sum;
}

TEST(CpuThreads, ARunnersThreadsInPlaceOfThePools) {
    std::atomic<int> times{0};
    const Runner runner(run_on_own_threads, &times);
    EXPECT_EQ(sum_to_99(3), 4950);
    EXPECT_EQ(times, 1);
    EXPECT_EQ(sum_to_99(1), 4950);
    EXPECT_EQ(times, 1) << "asked for one thread, the caller's";
    EXPECT_THROW(parallel_for(10, 2,
                              [](int64_t i) {
                                  if (i == 3) throw std::runtime_error("3");
                              }),
                 std::runtime_error);
}

TEST(CpuThreads, ARunnerMayCallFewerTimesThanItWasAskedFor) {
    {
        const Runner nobody([](void (*)(void*), void*, int32_t, void*) {});
        EXPECT_EQ(sum_to_99(4), 4950);
    }
    const Runner one([](void (*work)(void*), void* job, int32_t, void*) { work(job); });
    EXPECT_EQ(sum_to_99(4), 4950);
}

TEST(CpuThreads, AChildOfForkHasNoRunner) {
    std::atomic<int> times{0};
    const Runner runner(run_on_own_threads, &times);
    EXPECT_EQ(sum_to_99(2), 4950);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(sum_to_99(2) == 4950 && times == 1 ? 0 : 1);
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST(CpuThreads, AsManyThreadsAsAskedForAndNoMore) {
    for (const int threads : {1, 2, 4}) {
        std::mutex mutex;
        std::set<std::thread::id> seen;
        std::atomic<int> arrived{0};
        parallel_for(threads, threads, [&](int64_t) {
            {
                const std::lock_guard lock(mutex);
                seen.insert(std::this_thread::get_id());
            }
            // Nobody takes a second index before each thread has one.
            ++arrived;
            const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
            while (arrived < threads && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
        });
        EXPECT_EQ(seen.size(), static_cast<size_t>(threads));

        seen.clear();
        parallel_for(1000, threads, [&](int64_t) {
            const std::lock_guard lock(mutex);
            seen.insert(std::this_thread::get_id());
        });
        EXPECT_LE(seen.size(), static_cast<size_t>(threads));
    }
}

TEST(CpuThreads, TheFirstExceptionReachesTheCaller) {
    for (const int threads : {1, 4}) {
        std::atomic<int64_t> calls{0};
        EXPECT_THROW(parallel_for(1000000, threads,
                                  [&](int64_t i) {
                                      ++calls;
                                      if (i == 10) throw std::domain_error("ten");
                                  }),
                     std::domain_error);
        EXPECT_LT(calls.load(), 1000000) << "indices were still handed out";
        // And the pool is as good as before.
        std::atomic<int> after{0};
        parallel_for(100, threads, [&](int64_t) { ++after; });
        EXPECT_EQ(after.load(), 100);
    }
}

TEST(CpuThreads, ManyCallersAtOnce) {
    constexpr int kCallers = 8;
    std::atomic<int64_t> total{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < kCallers; ++c) {
        callers.emplace_back([&] {
            for (int round = 0; round < 50; ++round) parallel_for(100, 3, [&](int64_t i) { total += i; });
        });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(total.load(), int64_t{kCallers} * 50 * 4950);
}

TEST(CpuThreads, ACallWithinACall) {
    std::atomic<int> inner{0};
    parallel_for(4, 4, [&](int64_t) { parallel_for(10, 4, [&](int64_t) { ++inner; }); });
    EXPECT_EQ(inner.load(), 40);
}

// Voluntary context switches of this process's workers so far: how often they went to sleep.
int64_t sleeps_of_workers() {
    int64_t sleeps = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream status(task.path() / "status");
        std::string line;
        bool worker = false;
        while (std::getline(status, line)) {
            if (line == "Name:\tfoveal") worker = true;
            const std::string_view counter = "voluntary_ctxt_switches:";
            if (worker && line.starts_with(counter)) sleeps += std::stoll(line.substr(counter.size()));
        }
    }
    return sleeps;
}

// How often the scheduler has taken the CPU from any thread of this process: it does so where others want it too.
int64_t preemptions() {
    int64_t count = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
        std::ifstream status(task.path() / "status");
        const std::string_view counter = "nonvoluntary_ctxt_switches:";
        for (std::string line; std::getline(status, line);)
            if (line.starts_with(counter)) count += std::stoll(line.substr(counter.size()));
    }
    return count;
}

TEST(CpuThreads, OneCallAfterTheOtherFindsThemAwake) {
    constexpr int kCalls = 400;
    int64_t fewest = kCalls;
    bool undisturbed = false;
    for (int attempt = 0; attempt < 50 && fewest > kCalls / 4; ++attempt) {
        parallel_for(2, 2, [](int64_t) {});
        const int64_t before = sleeps_of_workers(), preempted = preemptions();
        for (int call = 0; call < kCalls; ++call) {
            std::atomic<int> arrived{0};
            parallel_for(2, 2, [&](int64_t) {  // both threads take part
                ++arrived;
                while (arrived < 2) std::this_thread::yield();
            });
        }
        fewest = std::min(fewest, sleeps_of_workers() - before);
        undisturbed |= preemptions() == preempted;
    }
    if (fewest > kCalls / 4 && !undisturbed) GTEST_SKIP() << "SKIPPED: the CPUs are busy with something else";
    EXPECT_LE(fewest, kCalls / 4);
}

TEST(CpuThreads, WithoutWorkTheySleep) {
    parallel_for(4, 4, [](int64_t) {});
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    timespec before{}, after{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const double used_s =
        static_cast<double>(after.tv_sec - before.tv_sec) + 1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
    EXPECT_LT(used_s, 0.05);
}

TEST(CpuThreads, AChildOfForkHasItsOwn) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "SKIPPED: ThreadSanitizer lets no child of fork() start threads";
#endif
    parallel_for(4, 4, [](int64_t) {});
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        alarm(20);  // a child that waits for its parent's threads would wait forever
        std::atomic<int> n{0};
        parallel_for(1000, 4, [&](int64_t) { ++n; });
        _exit(n == 1000 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(CpuThreads, EveryThreadRoundsAlikeAndTheCallersModeIsKept) {
    ASSERT_EQ(std::fesetround(FE_UPWARD), 0);
    std::feclearexcept(FE_ALL_EXCEPT);
    std::atomic<int> wrong{0};
    parallel_for(1000, 4, [&](int64_t) {
        const volatile float one = 1.0f, tiny = 0x1p-30f;
        const volatile float sum = one + tiny;
        if (sum != 1.0f) ++wrong;  // std::fegetround() asks the x87 unit, which nothing here uses
    });
    EXPECT_EQ(std::fegetround(), FE_UPWARD);
    EXPECT_EQ(std::fetestexcept(FE_ALL_EXCEPT), 0);
    std::fesetround(FE_TONEAREST);
    EXPECT_EQ(wrong.load(), 0);
}

#if defined(__SSE__)
TEST(CpuThreads, TheCallersFlushToZeroDoesNotCount) {
    constexpr unsigned kFlushToZeroAndDenormalsAreZero = 0x8040;
    const unsigned callers = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(callers | kFlushToZeroAndDenormalsAreZero);
    std::atomic<int> flushed{0};
    parallel_for(1000, 4, [&](int64_t) {
        const volatile float small = 0x1p-126f, half = 0.5f;
        const volatile float product = small * half;
        if (product == 0.0f) ++flushed;
    });
    EXPECT_EQ(__builtin_ia32_stmxcsr() & kFlushToZeroAndDenormalsAreZero, kFlushToZeroAndDenormalsAreZero);
    __builtin_ia32_ldmxcsr(callers);
    EXPECT_EQ(flushed.load(), 0);
}
#endif

TEST(CpuThreads, CountFollowsTheVariable) {
    for (const int n : {1, 2, 7, 4096}) {
        const ThreadsVariable variable(std::to_string(n).c_str());
        EXPECT_EQ(thread_count(), n);
    }
}

TEST(CpuThreads, CountFollowsTheAffinity) {
    std::thread([] {
        cpu_set_t before;
        ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
        EXPECT_EQ(thread_count(), CPU_COUNT(&before));
        int first = 0;
        while (!CPU_ISSET(first, &before)) ++first;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(first, &one);
        ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
        EXPECT_EQ(thread_count(), 1);
    }).join();
}

TEST(CpuThreads, CountFollowsOpenMPsVariableDownwards) {
    const int without = thread_count();
    for (const char* text : {"1", "1,4", " 1"})
        EXPECT_EQ((Variable("OMP_NUM_THREADS", text), thread_count()), 1) << text;
    for (const char* text : {"", "0", "-3", "many", "4096"})
        EXPECT_EQ((Variable("OMP_NUM_THREADS", text), thread_count()), without) << text;
    const Variable openmps("OMP_NUM_THREADS", "1");
    const ThreadsVariable own("7");
    EXPECT_EQ(thread_count(), 7);
}

TEST(CpuThreads, WhatIsSetComesBeforeTheVariable) {
    const ThreadsVariable variable("7");
    set_thread_count(3);
    EXPECT_EQ(thread_count(), 3);
    std::thread([] { EXPECT_EQ(thread_count(), 3); }).join();
    for (const int32_t wrong : {-1, 4097}) EXPECT_THROW(set_thread_count(wrong), Error);
    EXPECT_EQ(thread_count(), 3);
    set_thread_count(0);
    EXPECT_EQ(thread_count(), 7);
}

TEST(CpuThreads, AMalformedVariableIsRefusedByName) {
    for (const char* text : {"", "0", "-1", "4097", "two", "2 ", " 2", "2x", "99999999999999999999"}) {
        const ThreadsVariable variable(text);
        try {
            thread_count();
            ADD_FAILURE() << "'" << text << "' was accepted";
        } catch (const Error& error) {
            EXPECT_EQ(error.status(), FOVEAL_INVALID_ARGUMENT);
            const std::string message = error.what();
            EXPECT_NE(message.find("FOVEAL_NUM_THREADS is '" + std::string(text) + "'"), std::string::npos) << message;
        }
    }
}

}  // namespace
}  // namespace foveal::cpu
