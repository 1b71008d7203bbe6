#include "tests/parallel/gpu_ranks.hpp"

#include <dlfcn.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "tests/support/device_buffer.hpp"

namespace foveal_testing {
namespace {

class Gpu : public RankDevice {
   public:
    explicit Gpu(int32_t device) : device_(device) {}
    ~Gpu() override {
        memory_.clear();
        if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
        if (communication_ != nullptr) (void)cudaStreamDestroy(communication_);
    }
    void enter() override {
        require_cuda(cudaSetDevice(device_), "cudaSetDevice");
        require_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        require_cuda(cudaStreamCreateWithFlags(&communication_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    }
    void* allocate(size_t bytes) override {
        memory_.emplace_back(bytes + 16);  // an empty tensor has an address too
        return memory_.back().as();
    }
    // Not on the legacy stream, which would order what the library has to order.
    void upload(void* to, const void* from, size_t bytes) override { copy(to, from, bytes, cudaMemcpyHostToDevice); }
    void download(void* to, const void* from, size_t bytes) override { copy(to, from, bytes, cudaMemcpyDeviceToHost); }
    void* stream() const override { return stream_; }
    void* communication_stream() const override { return communication_; }

   private:
    void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
        if (bytes == 0) return;
        require_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync");
        require_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    }

    const int32_t device_;
    std::vector<DeviceBuffer> memory_;
    cudaStream_t stream_ = nullptr, communication_ = nullptr;
};

void require(foveal_nccl_result result, const char* what) {
    if (result != FOVEAL_NCCL_SUCCESS && result != FOVEAL_NCCL_IN_PROGRESS)
        throw std::runtime_error(std::string(what) + " of NCCL returns " + std::to_string(result));
}

}  // namespace

std::unique_ptr<RankDevice> gpu_of_rank(int32_t rank) { return std::make_unique<Gpu>(rank); }

const Nccl& Nccl::loaded() {
    static const Nccl nccl;
    return nccl;
}

Nccl::Nccl() {
    void* const handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    const auto find = [&](auto& function, const char* symbol) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
        if (function == nullptr) throw std::runtime_error(std::string("libnccl.so.2 has no ") + symbol);
    };
    find(init_all_, "ncclCommInitAll");
    find(unique_id_, "ncclGetUniqueId");
    find(init_rank_, "ncclCommInitRankConfig");
    find(async_error_, "ncclCommGetAsyncError");
    find(destroy_, "ncclCommDestroy");
    find(version_, "ncclGetVersion");
}

std::vector<foveal_nccl_comm_t> Nccl::blocking(int count) const {
    std::vector<foveal_nccl_comm_t> comms(static_cast<size_t>(count));
    require(init_all_(comms.data(), count, nullptr), "ncclCommInitAll");
    return comms;
}

std::vector<foveal_nccl_comm_t> Nccl::in_background(int count) const {
    UniqueId id;
    require(unique_id_(&id), "ncclGetUniqueId");
    std::vector<foveal_nccl_comm_t> comms(static_cast<size_t>(count));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < count; ++rank) {
        threads.emplace_back([&, rank] {
            foveal_nccl_comm_t& comm = comms[static_cast<size_t>(rank)];
            (void)cudaSetDevice(rank);
            Config config{sizeof(Config), 0xcafebeef, 21400, 0};
            foveal_nccl_result state = init_rank_(&comm, count, id, rank, &config);
            while (state == FOVEAL_NCCL_IN_PROGRESS) {
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
                if (async_error_(comm, &state) != FOVEAL_NCCL_SUCCESS) break;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return comms;
}

void Nccl::destroy(const std::vector<foveal_nccl_comm_t>& comms) const {
    for (foveal_nccl_comm_t comm : comms) (void)destroy_(comm);
}

int Nccl::version() const {
    int version = 0;
    require(version_(&version), "ncclGetVersion");
    return version;
}

}  // namespace foveal_testing
