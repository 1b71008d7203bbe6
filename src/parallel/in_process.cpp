// Ranks that are threads of one process: a message is a copy that its receiver makes from where the sender has it.
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "foveal/types.hpp"
#include "parallel/communicator.hpp"

namespace foveal::parallel {
namespace {

using Clock = std::chrono::steady_clock;

struct Message {
    const void* data;
    uint64_t bytes;
    bool copying = false;
    bool taken = false;
    bool withdrawn = false;  // its sender has failed: the data are no longer there
};

// Between two ranks: what is sent and not yet received, in order.
using Mailbox = std::deque<std::shared_ptr<Message>>;

struct Hub {
    explicit Hub(int32_t count) : ranks(count), mailboxes(static_cast<size_t>(count) * static_cast<size_t>(count)) {}

    Mailbox& mailbox(int32_t from, int32_t to) {
        return mailboxes[static_cast<size_t>(from) * static_cast<size_t>(ranks) + static_cast<size_t>(to)];
    }

    const int32_t ranks;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Mailbox> mailboxes;
    int32_t failed = -1;  // the rank that aborted
};

class Endpoint {
   public:
    Endpoint(std::shared_ptr<Hub> hub, int32_t rank) : hub_(std::move(hub)), rank_(rank) {}

    void begin() {
        sends_.clear();
        receives_.clear();
    }
    void send(const void* data, uint64_t bytes, int32_t peer) {
        require_peer(peer);
        sends_.push_back({peer, std::make_shared<Message>(Message{data, bytes})});
    }
    void recv(void* data, uint64_t bytes, int32_t peer) {
        require_peer(peer);
        receives_.push_back({peer, data, bytes});
    }

    // Posts all that is sent, takes all that is to come, and waits until what was posted is taken: then memory is the
    // caller's again.
    void end(double timeout_seconds) {
        const auto deadline =
            Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_seconds));
        std::unique_lock lock(hub_->mutex);
        for (const Sent& sent : sends_) hub_->mailbox(rank_, sent.peer).push_back(sent.message);
        hub_->changed.notify_all();
        try {
            for (const Receive& receive : receives_) take(receive, lock, deadline);
            for (const Sent& sent : sends_) await(lock, deadline, sent.peer, [&] { return sent.message->taken; });
        } catch (...) {
            for (const Sent& sent : sends_) {
                sent.message->withdrawn = true;
                hub_->changed.wait(lock, [&] { return !sent.message->copying; });
            }
            throw;
        }
    }

    void abort_all() {
        const std::lock_guard lock(hub_->mutex);
        if (hub_->failed < 0) hub_->failed = rank_;
        hub_->changed.notify_all();
    }

    TransportMessage message;

   private:
    struct Sent {
        int32_t peer;
        std::shared_ptr<Message> message;
    };
    struct Receive {
        int32_t peer;
        void* data;
        uint64_t bytes;
    };

    void require_peer(int32_t peer) const {
        if (peer < 0 || peer >= hub_->ranks)
            throw Error(FOVEAL_INVALID_ARGUMENT, "there is no rank " + std::to_string(peer));
    }

    template <class Condition>
    void await(std::unique_lock<std::mutex>& lock, Clock::time_point deadline, int32_t peer, const Condition& holds) {
        const bool in_time = hub_->changed.wait_until(lock, deadline, [&] { return hub_->failed >= 0 || holds(); });
        if (hub_->failed >= 0)
            throw Error(FOVEAL_INTERNAL_ERROR, "rank " + std::to_string(hub_->failed) + " has failed");
        if (!in_time)
            throw Error(FOVEAL_INTERNAL_ERROR, "rank " + std::to_string(peer) + " has not come within the timeout");
    }

    void take(const Receive& receive, std::unique_lock<std::mutex>& lock, Clock::time_point deadline) {
        Mailbox& mailbox = hub_->mailbox(receive.peer, rank_);
        await(lock, deadline, receive.peer, [&] { return !mailbox.empty(); });
        const std::shared_ptr<Message> sent = mailbox.front();
        mailbox.pop_front();
        if (sent->bytes != receive.bytes)
            throw Error(FOVEAL_INVALID_ARGUMENT, "rank " + std::to_string(receive.peer) + " has sent " +
                                                     std::to_string(sent->bytes) + " bytes where " +
                                                     std::to_string(receive.bytes) +
                                                     " were expected: its plan is of another problem");
        if (sent->withdrawn) throw Error(FOVEAL_INTERNAL_ERROR, "rank " + std::to_string(receive.peer) + " has failed");
        sent->copying = true;
        lock.unlock();
        std::memcpy(receive.data, sent->data, receive.bytes);
        lock.lock();
        sent->copying = false;
        sent->taken = true;
        hub_->changed.notify_all();
    }

    std::shared_ptr<Hub> hub_;
    int32_t rank_;
    std::vector<Sent> sends_;
    std::vector<Receive> receives_;
};

Endpoint& endpoint(void* context) { return *static_cast<Endpoint*>(context); }

foveal_transport transport_of(std::unique_ptr<Endpoint> owned, int32_t rank, int32_t ranks) {
    foveal_transport t{};
    t.struct_size = sizeof t;
    t.rank = rank;
    t.ranks = ranks;
    t.context = owned.release();
    t.begin = [](void* context) {
        endpoint(context).begin();
        return foveal_status{FOVEAL_OK};
    };
    t.send = [](void* context, const void* data, uint64_t bytes, int32_t peer, void*) {
        return endpoint(context).message.guarded([&] { endpoint(context).send(data, bytes, peer); });
    };
    t.recv = [](void* context, void* data, uint64_t bytes, int32_t peer, void*) {
        return endpoint(context).message.guarded([&] { endpoint(context).recv(data, bytes, peer); });
    };
    t.end = [](void* context, void* stream, double timeout_seconds) {
        return endpoint(context).message.guarded([&] {
            if (stream != nullptr)
                throw Error(FOVEAL_UNSUPPORTED, "a stream is given; ranks of one process have host memory");
            endpoint(context).end(timeout_seconds);
        });
    };
    t.abort_all = [](void* context) { endpoint(context).abort_all(); };
    t.message = [](void* context) { return endpoint(context).message.text(); };
    t.destroy = [](void* context) { delete &endpoint(context); };
    return t;
}

}  // namespace

std::vector<foveal_transport> in_process_transports(int32_t ranks) {
    const auto hub = std::make_shared<Hub>(ranks);
    std::vector<foveal_transport> transports;
    transports.reserve(static_cast<size_t>(ranks));
    for (int32_t rank = 0; rank < ranks; ++rank)
        transports.push_back(transport_of(std::make_unique<Endpoint>(hub, rank), rank, ranks));
    return transports;
}

}  // namespace foveal::parallel
