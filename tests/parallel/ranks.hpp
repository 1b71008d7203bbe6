// A case's call over several ranks, each a thread with its own rows in its own memory, on the CPU backend or on a GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "foveal/foveal_parallel.h"
#include "tests/support/backward_check.hpp"
#include "tests/support/check.hpp"

namespace foveal_testing {

// Where a rank computes, if not on the CPU: memory that it frees itself, and streams. All copies have ended on return.
class RankDevice {
   public:
    virtual ~RankDevice() = default;
    virtual void enter() = 0;  // in the rank's thread, before all else
    virtual void* allocate(size_t bytes) = 0;
    virtual void upload(void* to, const void* from, size_t bytes) = 0;
    virtual void download(void* to, const void* from, size_t bytes) = 0;
    virtual void* stream() const = 0;
    virtual void* communication_stream() const = 0;
};

struct Ranks {
    std::vector<foveal_span> spans_q, spans_k;
    int32_t count = 1;
    foveal_parallel_method method = FOVEAL_PARALLEL_AUTO;
    int32_t head_ranks = 0;
    double timeout_seconds = 60;
    int calls = 2;
    // Instead of foveal_communicator_create_in_process().
    std::function<void(foveal_communicator** communicators)> connect = {};
    // What a rank changes in its arguments before it calls; false: it does not call at all.
    std::function<bool(int32_t rank, foveal_parallel_args& args)> before_call = {};
    // Where rank number `rank` computes; none: on the CPU.
    std::function<std::unique_ptr<RankDevice>(int32_t rank)> device = {};
};

// Of one rank.
struct RankResult {
    foveal_status status = FOVEAL_OK;
    std::string message;
};

// Lengths of the sequences of a call: dense ones are alike, and count once.
struct Lengths {
    std::vector<int64_t> q, k;
};
Lengths lengths_of(const foveal_forward_args& whole);

std::vector<foveal_span> placed(foveal_placement placement, const std::vector<int64_t>& lengths, int32_t ranks);
// Cut anywhere, anywhere; some ranks may get nothing.
std::vector<foveal_span> scattered(std::mt19937& random, const std::vector<int64_t>& lengths, int32_t ranks);

// Both sides of a call placed zigzag over `count` ranks.
Ranks zigzag(const foveal_forward_args& whole, int32_t count, foveal_parallel_method method = FOVEAL_PARALLEL_RING);

// Every rank's calls, in the same workspace; then out and lse of `whole` hold what they have computed. Statuses and
// messages of the first failure of each rank.
std::vector<RankResult> run_ranks(const foveal_forward_args& whole, const Ranks& ranks);
// The same of gradients; those of sinks, slopes and of a bias whose row is shared must be the
// same bits on every rank.
std::vector<RankResult> run_ranks(const foveal_backward_args& whole, const Ranks& ranks);

// check_case() with run_ranks() in place of foveal_forward().
CheckResult check_over_ranks(const std::string& text, const std::function<Ranks(const foveal_forward_args&)>& ranks_of);
// What a test changes in the whole call before ranks get it.
using ChangeGradients = std::function<void(foveal_backward_args& gradients, foveal_forward_args& forward)>;
// check_backward() with run_ranks() in place of foveal_backward(); out and the log-sum-exp are one device's, and the
// bias's gradient where a rank has a single row.
CheckResult check_gradients_over_ranks(const std::string& text,
                                       const std::function<Ranks(const foveal_forward_args&)>& ranks_of,
                                       const ChangeGradients& change = {});

}  // namespace foveal_testing
