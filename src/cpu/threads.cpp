#include "cpu/threads.hpp"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace foveal::cpu {
namespace {

// How long a thread looks for what it waits for before it sleeps. Waking a sleeper takes 10 to 60 us, which in a row of
// short calls is as long as the work.
constexpr std::chrono::microseconds kAwake{50};

// Until done(), or for kAwake. Another thread that wants the CPU gets it.
template <typename Done>
void look_for(Done&& done) {
    const auto end = std::chrono::steady_clock::now() + kAwake;
    while (!done() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
}

// The default rounding, without flushing to zero, for its lifetime.
class DefaultFloatingPoint {
   public:
    DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
    DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

#if defined(__x86_64__)
    // MXCSR is all that vectors look at. The x87 unit, which nothing here uses, takes fesetenv() 0.1 us a call.
    DefaultFloatingPoint() { _mm_setcsr(0x1f80); }
    ~DefaultFloatingPoint() { _mm_setcsr(callers_); }

   private:
    const unsigned callers_ = _mm_getcsr();
#else
    DefaultFloatingPoint() {
        std::fegetenv(&callers_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatingPoint() { std::fesetenv(&callers_); }

   private:
    std::fenv_t callers_;
#endif
};

// One parallel_for. Lives on its caller's stack; `vacancies` and writing `helpers` belong to the pool's mutex.
class Job {
   public:
    Job(int64_t count, const std::function<void(int64_t)>& body) : count_(count), body_(body) {}

    // Takes indices until there are none left.
    void work() {
        const DefaultFloatingPoint environment;
        try {
            for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) body_(i);
        } catch (...) {
            next_.store(count_);
            if (!failed_.exchange(true)) error_ = std::current_exception();
        }
    }

    bool wants_help() const { return vacancies > 0 && next_.load(std::memory_order_relaxed) < count_; }

    // To be called when no helper is left.
    void rethrow_error() const {
        if (error_) std::rethrow_exception(error_);
    }

    int vacancies = 0;
    std::atomic<int> helpers{0};
    std::condition_variable no_helper_left;

   private:
    const int64_t count_;
    const std::function<void(int64_t)>& body_;
    std::atomic<int64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::exception_ptr error_;
};

class Pool {
   public:
    ~Pool() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
            ++announced_;
        }
        work_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    bool of_this_process() const { return process_ == getpid(); }

    bool idle() {
        const std::lock_guard lock(mutex_);
        return jobs_.empty();
    }

    void run(Job& job, int helpers) {
        {
            const std::lock_guard lock(mutex_);
            jobs_.reserve(jobs_.size() + 1);
            start_workers(helpers);
            job.vacancies = helpers;
            jobs_.push_back(&job);
            ++announced_;
        }
        for (int i = 0; i < helpers; ++i) work_.notify_one();
        job.work();
        std::unique_lock lock(mutex_);
        jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));
        if (job.helpers > 0) {
            lock.unlock();
            look_for([&] { return job.helpers == 0; });
            lock.lock();  // the last helper has let go of the job when it lets go of this
        }
        job.no_helper_left.wait(lock, [&] { return job.helpers == 0; });
    }

   private:
    // A system that refuses another thread leaves the job to those there are: slower, not wrong.
    void start_workers(int wanted) try {
        workers_.reserve(static_cast<size_t>(wanted));
        while (workers_.size() < static_cast<size_t>(wanted)) {
            sigset_t all, callers;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &callers);
            const auto restore = [&](void*) { pthread_sigmask(SIG_SETMASK, &callers, nullptr); };
            const std::unique_ptr<void, decltype(restore)> restorer(&all, restore);
            workers_.emplace_back([this] { serve(); });
        }
    } catch (const std::system_error&) {
    }

    Job* vacant_job() const {
        const auto job = std::find_if(jobs_.begin(), jobs_.end(), [](const Job* j) { return j->wants_help(); });
        return job == jobs_.end() ? nullptr : *job;
    }

    void serve() {
        pthread_setname_np(pthread_self(), "foveal");
        std::unique_lock lock(mutex_);
        while (true) {
            Job* job = vacant_job();
            if (job == nullptr && !stop_) {
                const uint64_t known = announced_;
                lock.unlock();
                look_for([&] { return announced_ != known; });
                lock.lock();
            }
            work_.wait(lock, [&] { return stop_ || (job = vacant_job()) != nullptr; });
            if (stop_) return;
            --job->vacancies;
            ++job->helpers;
            lock.unlock();
            job->work();
            lock.lock();
            // Still locked: once it sees no helper, the caller's stack frame, and with it the job, is gone.
            if (--job->helpers == 0) job->no_helper_left.notify_one();
        }
    }

    const pid_t process_ = getpid();
    std::mutex mutex_;
    std::condition_variable work_;
    std::vector<Job*> jobs_;              // oldest first
    std::atomic<uint64_t> announced_{0};  // jobs so far, and the end
    std::vector<std::thread> workers_;
    bool stop_ = false;
};

// The pool of this process. After fork() the parent's is left alone: its mutex may be held by a thread that the child
// does not have.
class CurrentPool {
   public:
    Pool& get() {
        Pool* pool = pool_.load();
        while (pool == nullptr || !pool->of_this_process()) {
            auto fresh = std::make_unique<Pool>();
            if (pool_.compare_exchange_strong(pool, fresh.get())) return *fresh.release();
        }
        return *pool;
    }

    // At exit or dlclose(); with a call still in flight on another thread, nothing is taken from under it.
    ~CurrentPool() {
        Pool* const pool = pool_.exchange(nullptr);
        if (pool != nullptr && pool->of_this_process() && pool->idle()) delete pool;
    }

   private:
    std::atomic<Pool*> pool_{nullptr};
};

CurrentPool current_pool;

// Whose threads are used in place of the pool's. Kept for good, each behind the next: a call may still be using it.
struct Runner {
    ThreadRunner run;  // null: none
    void* context;
    pid_t process;
    const Runner* before;
};

std::atomic<const Runner*> current_runner{nullptr};

void work_on(void* job) { static_cast<Job*>(job)->work(); }

// False: there is no runner in this process.
bool run_by_runner(Job& job, int threads) {
    const Runner* const runner = current_runner.load(std::memory_order_acquire);
    if (runner == nullptr || runner->run == nullptr || runner->process != getpid()) return false;
    runner->run(work_on, &job, threads, runner->context);
    job.work();  // what a runner left that called nobody
    return true;
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
    Job job(count, body);
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    if (helpers <= 0)
        job.work();
    else if (!run_by_runner(job, helpers + 1))
        current_pool.get().run(job, helpers);
    job.rethrow_error();
}

void set_thread_runner(ThreadRunner runner, void* context) {
    auto* const next = new (std::nothrow) Runner{runner, context, getpid(), current_runner.load()};
    while (next != nullptr && !current_runner.compare_exchange_weak(next->before, next)) {
    }
}

}  // namespace foveal::cpu
