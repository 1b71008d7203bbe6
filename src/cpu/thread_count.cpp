#include "cpu/thread_count.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>

#include "problem/argument.hpp"

namespace foveal::cpu {
namespace {

constexpr int kMaxThreads = 4096;

std::atomic<int> count_set{0};  // by set_thread_count(); 0: none

int cpus_of_this_thread() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::clamp(CPU_COUNT(&set), 1, kMaxThreads);
    return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads);
}

// CPUs' worth of time that a file cpu.max of a cgroup grants, rounded up: "200000 100000" are 2.
int granted_by(const std::string& cpu_max) {
    std::ifstream file(cpu_max);
    double quota = 0, period = 0;
    if (!(file >> quota >> period) || quota <= 0 || period <= 0) return kMaxThreads;  // "max 100000", or no such file
    return std::clamp(static_cast<int>((quota + period - 1) / period), 1, kMaxThreads);
}

// The least that this process's cgroup (version 2) and those above it grant.
int granted_by_cgroups() {
    std::ifstream cgroups("/proc/self/cgroup");
    int least = kMaxThreads;
    for (std::string line; std::getline(cgroups, line);) {
        if (!line.starts_with("0::/")) continue;
        for (std::string path = line.substr(3); !path.empty(); path.resize(path.rfind('/')))
            least = std::min(least, granted_by("/sys/fs/cgroup" + path + "/cpu.max"));
    }
    return std::min(least, granted_by("/sys/fs/cgroup/cpu.max"));
}

// The first number of OMP_NUM_THREADS, such as "4" or "4,2"; of any other text OpenMP says that it is ignored.
int omp_num_threads() {
    const char* const text = std::getenv("OMP_NUM_THREADS");
    if (text == nullptr) return kMaxThreads;
    const int count = std::atoi(text);
    return count < 1 ? kMaxThreads : std::min(count, kMaxThreads);
}

}  // namespace

int thread_count() { return thread_count_for(false); }

int thread_count_for(bool small_work) {
    if (const int count = count_set.load(std::memory_order_relaxed)) return count;
    const char* const text = std::getenv("FOVEAL_NUM_THREADS");
    if (text == nullptr) {
        if (small_work) return 1;
        static const int granted = granted_by_cgroups();
        return std::min({cpus_of_this_thread(), granted, omp_num_threads()});
    }
    const std::string_view digits(text);
    int count = 0;
    const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (failure != std::errc() || end != digits.data() + digits.size() || count < 1 || count > kMaxThreads)
        refuse("FOVEAL_NUM_THREADS is '" + std::string(digits) + "'; it must be an integer in [1, " +
               std::to_string(kMaxThreads) + "]");
    return count;
}

void set_thread_count(int32_t count) {
    if (count < 0 || count > kMaxThreads)
        refuse("threads is " + std::to_string(count) + "; it must lie in [1, " + std::to_string(kMaxThreads) +
               "], or be 0 for the default");
    count_set.store(count, std::memory_order_relaxed);
}

}  // namespace foveal::cpu
