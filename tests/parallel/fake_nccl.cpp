// A library with NCCL's names over the memory of one process, for the transport over NCCL: groups, states in the
// background, failures and aborts, without a device. A communicator is made by fake_nccl_init_all().
#include "tests/parallel/fake_nccl.hpp"

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct foveal_nccl_comm {
    std::shared_ptr<struct Clique> clique;
    int rank = 0;
    FakeNcclBehaviour behaviour;
    std::atomic<int> looks{0};  // at the state in the background since the last group ended
    std::atomic<bool> aborted{false};
};

struct Clique {
    int ranks = 0;
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::pair<int, int>, std::deque<std::vector<char>>> mailboxes;  // from, to
    bool aborted = false;
};

namespace {

struct Operation {
    foveal_nccl_comm* comm;
    int peer;
    std::vector<char> sent;
    void* received = nullptr;
    size_t bytes = 0;
};
thread_local int depth = 0;
thread_local std::vector<Operation> group;

// 5: ncclInvalidUsage, 6: ncclRemoteError
constexpr int kInvalidUsage = 5, kRemoteError = 6;

int finish(Operation& operation) {
    Clique& clique = *operation.comm->clique;
    std::unique_lock lock(clique.mutex);
    auto& mailbox = clique.mailboxes[{operation.peer, operation.comm->rank}];
    clique.changed.wait(lock, [&] { return clique.aborted || !mailbox.empty(); });
    if (clique.aborted || mailbox.front().size() != operation.bytes) return kRemoteError;
    std::memcpy(operation.received, mailbox.front().data(), operation.bytes);
    mailbox.pop_front();
    return FOVEAL_NCCL_SUCCESS;
}

}  // namespace

extern "C" {

void fake_nccl_init_all(foveal_nccl_comm** comms, int ranks, const FakeNcclBehaviour* behaviour) {
    const auto clique = std::make_shared<Clique>();
    clique->ranks = ranks;
    for (int i = 0; i < ranks; ++i) {
        comms[i] = new foveal_nccl_comm;
        comms[i]->clique = clique;
        comms[i]->rank = i;
        comms[i]->behaviour = *behaviour;
    }
}
int fake_nccl_is_aborted(const foveal_nccl_comm* comm) { return comm->aborted ? 1 : 0; }
void fake_nccl_free(foveal_nccl_comm* comm) { delete comm; }

int ncclGroupStart() {
    ++depth;
    return FOVEAL_NCCL_SUCCESS;
}

int ncclGroupEnd() {
    if (--depth != 0) return depth < 0 ? kInvalidUsage : FOVEAL_NCCL_SUCCESS;
    std::vector<Operation> operations;
    operations.swap(group);
    bool in_background = false;
    for (Operation& operation : operations) {
        operation.comm->looks = 0;
        in_background |= operation.comm->behaviour.looks_in_progress != 0;
        if (operation.received != nullptr) continue;
        Clique& clique = *operation.comm->clique;
        const std::lock_guard lock(clique.mutex);
        clique.mailboxes[{operation.comm->rank, operation.peer}].push_back(std::move(operation.sent));
        clique.changed.notify_all();
    }
    for (Operation& operation : operations)
        if (operation.received != nullptr)
            if (const int result = finish(operation)) return result;
    return in_background ? FOVEAL_NCCL_IN_PROGRESS : FOVEAL_NCCL_SUCCESS;
}

int ncclSend(const void* data, size_t count, int type, int peer, foveal_nccl_comm* comm, void*) {
    if (depth == 0 || type != FOVEAL_NCCL_INT8 || peer < 0 || peer >= comm->clique->ranks) return kInvalidUsage;
    if (comm->behaviour.send_fails != 0) return kInvalidUsage;
    const auto* bytes = static_cast<const char*>(data);
    group.push_back({comm, peer, {bytes, bytes + count}});
    return FOVEAL_NCCL_SUCCESS;
}

int ncclRecv(void* data, size_t count, int type, int peer, foveal_nccl_comm* comm, void*) {
    if (depth == 0 || type != FOVEAL_NCCL_INT8 || peer < 0 || peer >= comm->clique->ranks) return kInvalidUsage;
    group.push_back({comm, peer, {}, data, count});
    return FOVEAL_NCCL_SUCCESS;
}

int ncclCommCount(foveal_nccl_comm* comm, int* count) {
    *count = comm->clique->ranks;
    return FOVEAL_NCCL_SUCCESS;
}
int ncclCommUserRank(foveal_nccl_comm* comm, int* rank) {
    *rank = comm->rank;
    return FOVEAL_NCCL_SUCCESS;
}

int ncclCommGetAsyncError(foveal_nccl_comm* comm, int* state) {
    const bool in_progress = comm->looks++ < comm->behaviour.looks_in_progress;
    *state = in_progress ? FOVEAL_NCCL_IN_PROGRESS : comm->behaviour.async_error;
    return FOVEAL_NCCL_SUCCESS;
}

int ncclCommAbort(foveal_nccl_comm* comm) {
    comm->aborted = true;
    const std::lock_guard lock(comm->clique->mutex);
    comm->clique->aborted = true;
    comm->clique->changed.notify_all();
    return FOVEAL_NCCL_SUCCESS;
}

const char* ncclGetErrorString(int result) {
    return result == kInvalidUsage ? "invalid usage" : result == kRemoteError ? "remote error" : "another error";
}
const char* ncclGetLastError(foveal_nccl_comm*) { return "said the fake"; }

int fake_nccl_open_groups() { return depth; }

}  // extern "C"
