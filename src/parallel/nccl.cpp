// The transport over NCCL, which is loaded when the first communicator is made.
#include "parallel/nccl.h"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "foveal/types.hpp"
#include "parallel/communicator.hpp"

namespace foveal::parallel {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBetweenLooks = std::chrono::microseconds(50);

struct Library {
    foveal_nccl_group_function group_start = nullptr, group_end = nullptr;
    foveal_nccl_send_function send = nullptr;
    foveal_nccl_recv_function recv = nullptr;
    foveal_nccl_comm_int_function count = nullptr, user_rank = nullptr, async_error = nullptr;
    foveal_nccl_abort_function abort_comm = nullptr;
    foveal_nccl_error_string_function error_string = nullptr;
    foveal_nccl_last_error_function last_error = nullptr;
};

// It stays loaded: communicators of it outlive ours.
Library load(const char* path) {
    const std::string name = path == nullptr ? "libnccl.so.2" : path;
    void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* const reason = dlerror();
        throw Error(FOVEAL_UNSUPPORTED,
                    "NCCL cannot be loaded: " + std::string(reason == nullptr ? name.c_str() : reason));
    }
    Library library;
    const auto find = [&](auto& function, const char* symbol) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, symbol));
        if (function == nullptr) throw Error(FOVEAL_UNSUPPORTED, name + " has no " + symbol + "; NCCL 2.14 has");
    };
    find(library.group_start, "ncclGroupStart");
    find(library.group_end, "ncclGroupEnd");
    find(library.send, "ncclSend");
    find(library.recv, "ncclRecv");
    find(library.count, "ncclCommCount");
    find(library.user_rank, "ncclCommUserRank");
    find(library.async_error, "ncclCommGetAsyncError");
    find(library.abort_comm, "ncclCommAbort");
    find(library.error_string, "ncclGetErrorString");
    find(library.last_error, "ncclGetLastError");
    return library;
}

class Nccl {
   public:
    Nccl(void* comm, const char* path) : library_(load(path)), comm_(static_cast<foveal_nccl_comm_t>(comm)) {}

    int32_t ask(foveal_nccl_comm_int_function Library::*function, const char* name) {
        int value = 0;
        check((library_.*function)(comm_, &value), name);
        return value;
    }
    int32_t count() { return ask(&Library::count, "ncclCommCount"); }
    int32_t rank() { return ask(&Library::user_rank, "ncclCommUserRank"); }

    void begin() { check(library_.group_start(), "ncclGroupStart"); }
    void send(const void* data, uint64_t bytes, int32_t peer, void* stream) {
        check_in_group(library_.send(data, bytes, FOVEAL_NCCL_INT8, peer, comm_, stream), "ncclSend");
    }
    void recv(void* data, uint64_t bytes, int32_t peer, void* stream) {
        check_in_group(library_.recv(data, bytes, FOVEAL_NCCL_INT8, peer, comm_, stream), "ncclRecv");
    }

    // Of a communicator that does not block, what it does in the background is awaited: NCCL asks for that before the
    // next call. The work on the stream is not.
    void end(double timeout_seconds) {
        check(library_.group_end(), "ncclGroupEnd");
        await(timeout_seconds, "ncclGroupEnd", [&] { return state() == FOVEAL_NCCL_SUCCESS; });
    }
    void wait(void* stream, double timeout_seconds) {
        await(timeout_seconds, "the work on the stream",
              [&] { return state() == FOVEAL_NCCL_SUCCESS && has_ended(stream); });
    }
    void abort_all() {
        if (!aborted_.exchange(true)) library_.abort_comm(comm_);
    }

    TransportMessage message;

   private:
    foveal_nccl_result state() {
        foveal_nccl_result state = FOVEAL_NCCL_SUCCESS;
        check(library_.async_error(comm_, &state), "ncclCommGetAsyncError");
        check(state, "NCCL in the background");
        return state;
    }

    void check(foveal_nccl_result result, const char* what) {
        if (result == FOVEAL_NCCL_SUCCESS || result == FOVEAL_NCCL_IN_PROGRESS) return;
        const char* const reason = library_.error_string(result);
        const char* const detail = library_.last_error(comm_);
        throw Error(FOVEAL_CUDA_ERROR, std::string(what) + ": " + (reason == nullptr ? "" : reason) +
                                           (detail == nullptr || *detail == '\0' ? "" : std::string(", ") + detail));
    }

    // A group that is left open would take in what else this thread asks of NCCL.
    void check_in_group(foveal_nccl_result result, const char* what) {
        try {
            check(result, what);
        } catch (...) {
            library_.group_end();
            throw;
        }
    }

    template <class Condition>
    void await(double timeout_seconds, const char* what, const Condition& holds) {
        const auto deadline =
            Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_seconds));
        while (!holds()) {
            if (Clock::now() > deadline)
                throw Error(FOVEAL_CUDA_ERROR,
                            std::string(what) + " has not ended within " + std::to_string(timeout_seconds) + " s");
            std::this_thread::sleep_for(kBetweenLooks);
        }
    }

    Library library_;
    foveal_nccl_comm_t comm_;
    std::atomic<bool> aborted_{false};
};

Nccl& nccl(void* context) { return *static_cast<Nccl*>(context); }

}  // namespace

foveal_transport nccl_transport(void* nccl_comm, const char* library) {
    if (nccl_comm == nullptr) throw Error(FOVEAL_INVALID_ARGUMENT, "nccl_comm is NULL");
    auto owned = std::make_unique<Nccl>(nccl_comm, library);
    foveal_transport t{};
    t.struct_size = sizeof t;
    t.rank = owned->rank();
    t.ranks = owned->count();
    t.context = owned.release();
    t.begin = [](void* context) { return nccl(context).message.guarded([&] { nccl(context).begin(); }); };
    t.send = [](void* context, const void* data, uint64_t bytes, int32_t peer, void* stream) {
        return nccl(context).message.guarded([&] { nccl(context).send(data, bytes, peer, stream); });
    };
    t.recv = [](void* context, void* data, uint64_t bytes, int32_t peer, void* stream) {
        return nccl(context).message.guarded([&] { nccl(context).recv(data, bytes, peer, stream); });
    };
    t.end = [](void* context, void*, double timeout_seconds) {
        return nccl(context).message.guarded([&] { nccl(context).end(timeout_seconds); });
    };
    t.wait = [](void* context, void* stream, double timeout_seconds) {
        return nccl(context).message.guarded([&] { nccl(context).wait(stream, timeout_seconds); });
    };
    t.abort_all = [](void* context) { nccl(context).abort_all(); };
    t.message = [](void* context) { return nccl(context).message.text(); };
    t.destroy = [](void* context) { delete &nccl(context); };
    return t;
}

}  // namespace foveal::parallel
