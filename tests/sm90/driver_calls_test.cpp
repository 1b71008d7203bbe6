// What a repeated call asks of the CUDA driver, as CUPTI sees it: launches and where they go, no allocation, no copy,
// no synchronisation, no other stream (contract 1.8).
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "tests/support/gpu_fixture.hpp"

namespace foveal_testing {
namespace {

// ---- CUPTI, whose headers a build need not have ---------------------------------------------------------------------

struct CallbackData {
    int32_t site;  // 0: the call begins
    const char* function_name;
};
using Callback = void (*)(void* user, int32_t domain, uint32_t call, const CallbackData* data);
using Subscribe = int32_t (*)(void** subscriber, Callback callback, void* user);
using EnableDomain = int32_t (*)(uint32_t enable, void* subscriber, int32_t domain);
using Unsubscribe = int32_t (*)(void* subscriber);
constexpr int32_t kDriverDomain = 1;

void* load_cupti() {
    for (const char* path : {"libcupti.so.13", "libcupti.so", "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so"})
        if (void* library = dlopen(path, RTLD_NOW)) return library;
    return nullptr;
}

// The driver's functions that are called while it lives, and how often.
class DriverCalls {
   public:
    explicit DriverCalls(void* cupti) : cupti_(cupti) {
        require(function<Subscribe>("cuptiSubscribe")(&subscriber_, &DriverCalls::count, this), "cuptiSubscribe");
        require(function<EnableDomain>("cuptiEnableDomain")(1, subscriber_, kDriverDomain), "cuptiEnableDomain");
    }
    ~DriverCalls() { (void)function<Unsubscribe>("cuptiUnsubscribe")(subscriber_); }
    DriverCalls(const DriverCalls&) = delete;
    DriverCalls& operator=(const DriverCalls&) = delete;

    const std::map<std::string, int32_t>& counts() const { return counts_; }

   private:
    template <class Function>
    Function function(const char* name) const {
        return reinterpret_cast<Function>(dlsym(cupti_, name));
    }
    static void require(int32_t status, const char* what) {
        if (status != 0) throw std::runtime_error(std::string(what) + ": " + std::to_string(status));
    }
    static void count(void* user, int32_t domain, uint32_t, const CallbackData* data) {
        if (domain == kDriverDomain && data->site == 0) ++static_cast<DriverCalls*>(user)->counts_[data->function_name];
    }

    void* cupti_;
    void* subscriber_ = nullptr;
    std::map<std::string, int32_t> counts_;
};

// ---- the calls ------------------------------------------------------------------------------------------------------

struct Expected {
    const char* text;
    int32_t launches;
};

// The kernel, and finding the device of the stream and making it current.
bool is_allowed(const std::string& name) {
    static const std::set<std::string> allowed = {
        "cuCtxGetCurrent",  "cuCtxGetDevice",      "cuCtxGetDevice_v2", "cuCtxPopCurrent", "cuCtxPopCurrent_v2",
        "cuCtxPushCurrent", "cuCtxPushCurrent_v2", "cuLaunchKernelEx",  "cuStreamGetCtx",  "cuTensorMapEncodeTiled"};
    return allowed.contains(name);
}

TEST_F(Gpu, ARepeatedCallLaunchesAndAsksForNothingElse) {
    void* const cupti = load_cupti();
    if (cupti == nullptr) GTEST_SKIP() << "SKIPPED: there is no libcupti.so";
    const Expected cases[] = {
        {"b2 sq300 sk300 hq8 hk2 d128 bf16 causal lse", 1},
        {"b3 sq1 sk1400 hq8 hk2 d128 bf16 lse", 1},
        {"b3 sq1 sk1400 used_k=7,1400,0 hq8 hk2 d128 bf16 lse page64", 1},
        {"b3 sq4 sk1400 used_k=7,1400,0 hq8 hk2 d256 f16 softcap30 page1", 1},
        // As far as the host knows a sequence has one to three of the rows, which two kernels decode.
        {"varlen qlens=1,1,1 sk1400 used_k=7,1400,3 hq8 hk2 d128 bf16 page64", 2},
        {"varlen qlens=1,300,4 sk1400 used_k=7,1400,300 hq8 hk2 d128 bf16 page64", 3},
    };
    const Stream stream;
    for (const Expected& expected : cases) {
        const auto data = on_gpu(expected.text);
        run(*data, stream);  // loads the kernel's code
        stream.synchronize();
        DriverCalls calls(cupti);
        run(*data, stream);
        const std::map<std::string, int32_t> counts = calls.counts();
        stream.synchronize();
        int32_t launches = 0;
        for (const auto& [name, count] : counts) {
            EXPECT_TRUE(is_allowed(name)) << expected.text << ": " << name << ", " << count << " times";
            if (name.starts_with("cuLaunch")) launches += count;
        }
        EXPECT_EQ(launches, expected.launches) << expected.text;
    }
}

}  // namespace
}  // namespace foveal_testing
