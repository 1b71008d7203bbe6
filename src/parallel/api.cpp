// The functions of foveal_parallel.h.
#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "c_api.hpp"
#include "foveal/foveal_parallel.h"
#include "parallel/backward.hpp"
#include "parallel/communicator.hpp"
#include "parallel/decode.hpp"
#include "parallel/execute.hpp"
#include "parallel/placement.hpp"
#include "parallel/plan.hpp"
#include "problem/argument.hpp"
#include "problem/mask.hpp"

struct foveal_parallel_plan {
    foveal::parallel::Plan plan;
};

namespace foveal {

template <>
constexpr size_t kFirstSize<foveal_parallel_args> = offsetof(foveal_parallel_args, communication_stream) +
                                                    sizeof(foveal_parallel_args::communication_stream);
template <>
constexpr size_t kFirstSize<foveal_parallel_decode_args> = offsetof(foveal_parallel_decode_args, workspace_bytes) +
                                                           sizeof(foveal_parallel_decode_args::workspace_bytes);
template <>
constexpr size_t kFirstSize<foveal_transport> = offsetof(foveal_transport, destroy) + sizeof(foveal_transport::destroy);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_parallel_args> == 104);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_parallel_decode_args> == 32);
static_assert(sizeof(void*) != 8 || kFirstSize<foveal_transport> == 88);

}  // namespace foveal

namespace {

using foveal::guarded;
using foveal::Known;
using foveal::refuse;
using foveal::required;

Known<foveal_parallel_args> known(const foveal_parallel_args* args) {
    return {args, "foveal_parallel_args_init", foveal_parallel_args_init_sized};
}
Known<foveal_parallel_decode_args> known(const foveal_parallel_decode_args* args) {
    return {args, "foveal_parallel_decode_args_init", foveal_parallel_decode_args_init_sized};
}

// With forward arguments that are as long as this version knows them.
template <class Args>
class Completed {
   public:
    explicit Completed(const Args* args) : args_(*known(args)) {
        if (args_.forward == nullptr) refuse("forward is NULL; it has this rank's tensors");
        foveal::complete(args_.forward, &forward_, sizeof forward_);
        args_.forward = &forward_;
    }
    Completed(const Completed&) = delete;
    Completed& operator=(const Completed&) = delete;

    const Args& operator*() const { return args_; }

   private:
    Args args_;
    foveal_forward_args forward_;
};

// Gradients of the call whose structure `forward` is.
foveal_backward_args completed(const foveal_backward_args* gradients, const foveal_parallel_args* args) {
    foveal_backward_args all;
    foveal::complete(&required(gradients, "gradients"), &all, sizeof all);
    if (all.forward != required(args, "args").forward)
        refuse("gradients->forward is not args->forward; both name the same call");
    return all;
}

// What fails on one rank is told to the others.
template <class Body>
foveal_status together(foveal_communicator* communicator, Body&& body) {
    const foveal_status status = guarded(body);
    if (status != FOVEAL_OK && communicator != nullptr) communicator->abort_all();
    return status;
}

void check_place(foveal_placement placement, std::span<const int64_t> lengths, int32_t ranks) {
    if (placement != FOVEAL_CONTIGUOUS && placement != FOVEAL_ZIGZAG)
        refuse("placement is " + std::to_string(placement) + "; known are 0 (contiguous) and 1 (zigzag)");
    if (ranks < 1) refuse("ranks is " + std::to_string(ranks) + "; there is at least one");
    int64_t total = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
        if (lengths[i] < 0 || lengths[i] > foveal::kMaxSequenceLength)
            refuse("lengths[" + std::to_string(i) + "] is " + std::to_string(lengths[i]) + "; it must lie in [0, " +
                   std::to_string(foveal::kMaxSequenceLength) + "]");
        total += lengths[i];
        if (total > ranks * int64_t{foveal::kMaxSequenceLength})
            refuse("lengths are more than " + std::to_string(foveal::kMaxSequenceLength) + " rows a rank");
    }
}

foveal_communicator* owned(const foveal_transport& transport, double timeout_seconds) {
    try {
        foveal::parallel::check_transport(transport, timeout_seconds);
        return new foveal_communicator(transport, timeout_seconds);
    } catch (...) {
        if (transport.destroy != nullptr) transport.destroy(transport.context);
        throw;
    }
}

}  // namespace

extern "C" {

foveal_status foveal_place(foveal_placement placement, const int64_t* lengths, int64_t sequences, int32_t ranks,
                           foveal_span* spans, int64_t capacity, int64_t* needed) {
    return guarded([&] {
        if (sequences < 0) refuse("sequences is " + std::to_string(sequences) + "; it must not be negative");
        if (sequences > 0) required(lengths, "lengths");
        const std::span<const int64_t> all(lengths, static_cast<size_t>(sequences));
        check_place(placement, all, ranks);
        const std::vector<foveal_span> placed = foveal::parallel::place(placement, all, ranks);
        required(needed, "needed") = static_cast<int64_t>(placed.size());
        const int64_t count = std::min(capacity, *needed);
        if (count > 0) std::copy_n(placed.begin(), count, &required(spans, "spans"));
    });
}

foveal_status foveal_communicator_create(const foveal_transport* transport, double timeout_seconds,
                                         foveal_communicator** communicator) {
    return guarded([&] {
        const Known<foveal_transport> given(transport, "it sizeof(foveal_transport)",
                                            [](foveal_transport* to, size_t size) { foveal::initialise(to, size); });
        foveal::parallel::check_transport(*given, timeout_seconds);
        required(communicator, "communicator") = new foveal_communicator(*given, timeout_seconds);
    });
}

foveal_status foveal_communicator_create_nccl(void* nccl_comm, const char* library, double timeout_seconds,
                                              foveal_communicator** communicator) {
    return guarded([&] {
        required(communicator, "communicator") =
            owned(foveal::parallel::nccl_transport(nccl_comm, library), timeout_seconds);
    });
}

foveal_status foveal_communicator_create_in_process(int32_t ranks, double timeout_seconds,
                                                    foveal_communicator** communicators) {
    return guarded([&] {
        constexpr int32_t kMaxThreads = 4096;
        if (ranks < 1 || ranks > kMaxThreads)
            refuse("ranks is " + std::to_string(ranks) + "; it must lie in [1, " + std::to_string(kMaxThreads) + "]");
        required(communicators, "communicators");
        std::vector<std::unique_ptr<foveal_communicator>> made;
        for (const foveal_transport& transport : foveal::parallel::in_process_transports(ranks))
            made.emplace_back(owned(transport, timeout_seconds));
        for (size_t i = 0; i < made.size(); ++i) communicators[i] = made[i].release();
    });
}

foveal_status foveal_communicator_wait(foveal_communicator* communicator, void* stream) {
    return guarded([&] { required(communicator, "communicator").wait(stream); });
}

foveal_status foveal_communicator_abort(foveal_communicator* communicator) {
    return guarded([&] { required(communicator, "communicator").abort_all(); });
}

void foveal_communicator_destroy(foveal_communicator* communicator) { delete communicator; }

void foveal_parallel_args_init_sized(foveal_parallel_args* args, size_t size) { foveal::initialise(args, size); }

foveal_status foveal_parallel_plan_create(const foveal_parallel_args* args, foveal_parallel_plan** plan) {
    return guarded(
        [&] { required(plan, "plan") = new foveal_parallel_plan{foveal::parallel::make_plan(*Completed(args))}; });
}

foveal_status foveal_parallel_backward_plan_create(const foveal_parallel_args* args,
                                                   const foveal_backward_args* gradients, foveal_parallel_plan** plan) {
    return guarded([&] {
        const Completed all(args);
        const foveal_backward_args asked = completed(gradients, args);
        required(plan, "plan") = new foveal_parallel_plan{foveal::parallel::make_plan(*all, &asked)};
    });
}

void foveal_parallel_plan_destroy(foveal_parallel_plan* plan) { delete plan; }

foveal_status foveal_parallel_plan_describe(const foveal_parallel_plan* plan, char* text, size_t size, size_t* needed) {
    return guarded(
        [&] { foveal::copy_text(foveal::parallel::describe(required(plan, "plan").plan), text, size, needed); });
}

size_t foveal_parallel_plan_workspace_bytes(const foveal_parallel_plan* plan) {
    return plan == nullptr ? 0 : static_cast<size_t>(plan->plan.regions.total_bytes);
}

const int32_t* foveal_parallel_plan_offsets(const foveal_parallel_plan* plan, int64_t* count) {
    const bool has_any = plan != nullptr && !plan->plan.offsets.empty();
    if (count != nullptr) *count = has_any ? static_cast<int64_t>(plan->plan.offsets.size()) : 0;
    return has_any ? plan->plan.offsets.data() : nullptr;
}

foveal_status foveal_parallel_forward(const foveal_parallel_plan* plan, foveal_communicator* communicator,
                                      const foveal_parallel_args* args, void* stream) {
    return together(communicator, [&] {
        foveal::parallel::execute(required(plan, "plan").plan, required(communicator, "communicator"), *Completed(args),
                                  stream);
    });
}

foveal_status foveal_parallel_backward(const foveal_parallel_plan* plan, foveal_communicator* communicator,
                                       const foveal_parallel_args* args, const foveal_backward_args* gradients,
                                       void* stream) {
    return together(communicator, [&] {
        const Completed all(args);
        foveal::parallel::differentiate(required(plan, "plan").plan, required(communicator, "communicator"), *all,
                                        completed(gradients, args), stream);
    });
}

int64_t foveal_dealt_keys(int64_t length, int64_t span, int32_t rank, int32_t ranks) {
    if (length < 0 || span < 1 || ranks < 1 || rank < 0 || rank >= ranks) return 0;
    const int64_t spans = length / span, rest = length % span;  // of which the rank has every ranks-th
    const int64_t own = spans / ranks + (spans % ranks > rank ? 1 : 0);
    return own * span + (spans % ranks == rank ? rest : 0);
}

void foveal_parallel_decode_args_init_sized(foveal_parallel_decode_args* args, size_t size) {
    foveal::initialise(args, size);
}

foveal_status foveal_parallel_decode_workspace_bytes(const foveal_parallel_decode_args* args, int32_t ranks,
                                                     uint64_t* bytes) {
    return guarded([&] {
        const Completed all(args);
        required(bytes, "bytes") = foveal::parallel::decode_workspace_bytes(*(*all).forward, ranks);
    });
}

foveal_status foveal_parallel_decode(foveal_communicator* communicator, const foveal_parallel_decode_args* args,
                                     void* stream) {
    return together(communicator, [&] {
        const Completed all(args);
        foveal::parallel::decode(required(communicator, "communicator"), *all, *(*all).forward, stream);
    });
}

}  // extern "C"
