#include "parallel/communicator.hpp"

#include <cmath>
#include <string>

#include "foveal/types.hpp"
#include "problem/argument.hpp"

foveal_communicator::foveal_communicator(const foveal_transport& transport, double timeout_seconds)
    : transport_(transport), timeout_seconds_(timeout_seconds) {}

foveal_communicator::~foveal_communicator() {
    if (transport_.destroy != nullptr) transport_.destroy(transport_.context);
}

void foveal_communicator::check(foveal_status status, const char* what) {
    if (status == FOVEAL_OK) return;
    const char* const reason = transport_.message(transport_.context);
    throw foveal::Error(status, std::string(what) + " of rank " + std::to_string(rank()) + ": " +
                                    (reason == nullptr ? foveal_status_name(status) : reason));
}

void foveal_communicator::require_alive() const {
    if (aborted_.load())
        throw foveal::Error(FOVEAL_INVALID_ARGUMENT, "the communicator of rank " + std::to_string(rank()) +
                                                         " has been aborted; a new one is needed");
}

void foveal_communicator::begin() {
    require_alive();
    check(transport_.begin(transport_.context), "begin");
}

void foveal_communicator::send(const void* data, uint64_t bytes, int32_t peer, void* stream) {
    if (bytes > 0) check(transport_.send(transport_.context, data, bytes, peer, stream), "send");
}

void foveal_communicator::recv(void* data, uint64_t bytes, int32_t peer, void* stream) {
    if (bytes > 0) check(transport_.recv(transport_.context, data, bytes, peer, stream), "recv");
}

void foveal_communicator::end(void* stream) {
    check(transport_.end(transport_.context, stream, timeout_seconds_), "exchange");
}

void foveal_communicator::wait(void* stream) {
    require_alive();
    if (transport_.wait == nullptr) return;
    try {
        check(transport_.wait(transport_.context, stream, timeout_seconds_), "wait");
    } catch (...) {
        abort_all();
        throw;
    }
}

void foveal_communicator::abort_all() noexcept {
    if (!aborted_.exchange(true)) transport_.abort_all(transport_.context);
}

namespace foveal::parallel {

void check_transport(const foveal_transport& t, double timeout_seconds) {
    if (t.ranks < 1) refuse("transport.ranks is " + std::to_string(t.ranks) + "; there is at least one");
    if (t.rank < 0 || t.rank >= t.ranks)
        refuse("transport.rank is " + std::to_string(t.rank) + "; it must lie in [0, " + std::to_string(t.ranks) + ")");
    if (t.reserved != 0) refuse("transport.reserved is " + std::to_string(t.reserved) + "; it must be 0");
    if (t.begin == nullptr || t.send == nullptr || t.recv == nullptr || t.end == nullptr || t.abort_all == nullptr ||
        t.message == nullptr)
        refuse("one of transport's functions begin, send, recv, end, abort_all and message is NULL");
    if (!(timeout_seconds > 0) || std::isinf(timeout_seconds))
        refuse("timeout_seconds is " + std::to_string(timeout_seconds) + "; it must be positive and finite");
}

}  // namespace foveal::parallel
