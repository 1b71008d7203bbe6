// A transport with a timeout, whose failures are exceptions, and the transports that foveal brings itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <string>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "foveal/types.hpp"
#include "parallel/streams.hpp"

// By the C structure's name.
struct foveal_communicator {
    // Copies `transport`, and owns its context if that has a `destroy`.
    foveal_communicator(const foveal_transport& transport, double timeout_seconds);
    ~foveal_communicator();
    foveal_communicator(const foveal_communicator&) = delete;
    foveal_communicator& operator=(const foveal_communicator&) = delete;

    int32_t rank() const { return transport_.rank; }
    int32_t ranks() const { return transport_.ranks; }
    foveal::parallel::StreamEvents& events() { return events_; }

    // Each throws Error with the transport's status and message. Messages of 0 bytes are not sent.
    void begin();
    void send(const void* data, uint64_t bytes, int32_t peer, void* stream);
    void recv(void* data, uint64_t bytes, int32_t peer, void* stream);
    void end(void* stream);
    void wait(void* stream);
    void abort_all() noexcept;

   private:
    void check(foveal_status status, const char* what);
    void require_alive() const;

    foveal_transport transport_;
    double timeout_seconds_;
    std::atomic<bool> aborted_{false};
    foveal::parallel::StreamEvents events_;
};

namespace foveal::parallel {

using Communicator = foveal_communicator;

// Throws Error(INVALID_ARGUMENT).
void check_transport(const foveal_transport& transport, double timeout_seconds);

// For as many threads of this process as ranks. Without a message on its way, nobody waits longer than the timeout.
std::vector<foveal_transport> in_process_transports(int32_t ranks);

// Of an ncclComm_t. Throws Error(UNSUPPORTED) where NCCL cannot be loaded, Error(CUDA_ERROR) for its errors.
foveal_transport nccl_transport(void* nccl_comm, const char* library);

// What transports have in common: the last failure's message, and functions that catch what is thrown.
class TransportMessage {
   public:
    // Runs `body`; FOVEAL_OK, or the status of what it throws, whose message is kept.
    template <class Body>
    foveal_status guarded(Body&& body) noexcept {
        try {
            body();
            return FOVEAL_OK;
        } catch (const Error& error) {
            return keep(error.status(), error.what());
        } catch (const std::bad_alloc&) {
            return keep(FOVEAL_OUT_OF_MEMORY, "out of host memory");
        } catch (const std::exception& error) {
            return keep(FOVEAL_INTERNAL_ERROR, error.what());
        }
    }
    const char* text() const { return text_.c_str(); }

   private:
    foveal_status keep(foveal_status status, const char* text) noexcept {
        try {
            text_ = text;
        } catch (...) {
            text_.clear();
        }
        return status;
    }
    std::string text_;
};

}  // namespace foveal::parallel
