// What the GPU tests share: a fixture that skips visibly where there is no device, streams, and runs of a case.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/check.hpp"
#include "tests/support/device_buffer.hpp"

namespace foveal_testing {

inline constexpr foveal_backend kSm90 = FOVEAL_BACKEND_SM90;

class Gpu : public ::testing::Test {
   protected:
    void SetUp() override {
        if (!has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
    // The library leaves no error behind for the caller's next CUDA call.
    void TearDown() override { EXPECT_EQ(has_sm90_device() ? cudaGetLastError() : cudaSuccess, cudaSuccess); }
};

class Stream {
   public:
    explicit Stream(unsigned flags = cudaStreamNonBlocking) {
        require_cuda(cudaStreamCreateWithFlags(&stream_, flags), "cudaStreamCreateWithFlags");
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { (void)cudaStreamDestroy(stream_); }
    operator cudaStream_t() const { return stream_; }
    void synchronize() const { require_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

   private:
    cudaStream_t stream_ = nullptr;
};

inline std::unique_ptr<CaseData> on_gpu(const std::string& text) { return make_case_data(parse_case(text), kSm90); }

inline void run(CaseData& data, cudaStream_t stream = nullptr) {
    ASSERT_EQ(foveal_forward(&data.args(), stream), FOVEAL_OK)
        << to_text(data.the_case()) << ": " << foveal_last_error();
}

// Both outputs, padding and guards included.
inline std::vector<std::byte> outputs(CaseData& data) {
    data.synchronize();
    std::vector<std::byte> bytes = data.bytes(TensorId::kOut);
    const std::vector<std::byte> lse = data.bytes(TensorId::kLse);
    bytes.insert(bytes.end(), lse.begin(), lse.end());
    return bytes;
}

// Else where they first differ and how much of them does, for a result is too long to print.
inline ::testing::AssertionResult same_bytes(const std::vector<std::byte>& got,
                                             const std::vector<std::byte>& expected) {
    if (got.size() != expected.size())
        return ::testing::AssertionFailure() << got.size() << " bytes of " << expected.size();
    size_t different = 0, first = 0;
    for (size_t n = got.size(); n-- > 0;) {
        if (got[n] == expected[n]) continue;
        ++different;
        first = n;
    }
    if (different == 0) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << different << " of " << got.size() << " bytes differ, the first at "
                                         << first;
}

inline std::vector<std::byte> outputs_of(const std::string& text) {
    const auto data = on_gpu(text);
    run(*data);
    return outputs(*data);
}

}  // namespace foveal_testing
