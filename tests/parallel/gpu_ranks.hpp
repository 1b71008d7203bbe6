// Ranks on GPUs of this process: memory and streams of each, and NCCL's communicators. Only in builds with CUDA.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "parallel/nccl.h"
#include "tests/parallel/ranks.hpp"

namespace foveal_testing {

// The rank's device has its number.
std::unique_ptr<RankDevice> gpu_of_rank(int32_t rank);

// What the tests call of NCCL beside what the library calls.
class Nccl {
   public:
    // Throws std::runtime_error where libnccl.so.2 is not found.
    static const Nccl& loaded();

    // Of devices 0, 1 ..., which wait on the host until all have come.
    std::vector<foveal_nccl_comm_t> blocking(int count) const;
    // The same of communicators whose calls return at once (config.blocking = 0).
    std::vector<foveal_nccl_comm_t> in_background(int count) const;
    void destroy(const std::vector<foveal_nccl_comm_t>& comms) const;
    int version() const;

   private:
    Nccl();
    struct UniqueId {
        char bytes[128];
    };
    // ncclConfig_t as NCCL 2.14 knew it; later ones take the rest as their defaults.
    struct Config {
        size_t size;
        unsigned magic, version;
        int blocking;
    };
    foveal_nccl_result (*init_all_)(foveal_nccl_comm_t* comms, int count, const int* devices) = nullptr;
    foveal_nccl_result (*unique_id_)(UniqueId* id) = nullptr;
    foveal_nccl_result (*init_rank_)(foveal_nccl_comm_t* comm, int ranks, UniqueId id, int rank,
                                     Config* config) = nullptr;
    foveal_nccl_result (*async_error_)(foveal_nccl_comm_t comm, foveal_nccl_result* state) = nullptr;
    foveal_nccl_result (*destroy_)(foveal_nccl_comm_t comm) = nullptr;
    foveal_nccl_result (*version_)(int* version) = nullptr;
};

}  // namespace foveal_testing
