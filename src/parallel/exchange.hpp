// What one rank's forward and backward have in common: views of the workspace, k and v on their way from rank to rank,
// and, for ulysses, rows for heads.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/plan.hpp"

namespace foveal::parallel {

// Throws Error with the thread's last message unless it is FOVEAL_OK.
void check(foveal_status status);

// A tensor, or two that have the same rows and heads.
struct Pair {
    foveal_tensor first{}, second{};
};

// Rows [b, rows, heads, channels] to another place, and to its type. zeros: i32 [b].
void copy_rows(const Pair& from, const Pair& to, const foveal_tensor& zeros, foveal_backend backend, void* stream);

// Throws Error(INVALID_ARGUMENT) unless there is as much, aligned to 256 bytes.
void require_workspace(const void* workspace, uint64_t workspace_bytes, uint64_t needed);

// Is this call the plan's, with the memory that it needs? Throws Error(INVALID_ARGUMENT).
void check_call(const Plan& plan, const Communicator& communicator, const foveal_parallel_args& args,
                const foveal_forward_args& local);

// q, k, v, out and lse of a crew: the caller's own, or in the workspace.
struct Shards {
    foveal_tensor q, k, v, out, lse;
};

// What goes from rows to heads: this rank's rows of all heads, and where the crew's rows of this rank's heads come.
struct Journey {
    Pair own, crew;
    Region packed_first, packed_second;
    bool is_of_keys = false;
};

class Exchange {
   public:
    // All arguments stay where they are.
    Exchange(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
             const foveal_forward_args& local, void* stream);
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

   protected:
    ~Exchange() = default;

    const ForwardProblem& problem() const { return plan_.problem.local; }
    foveal_dtype dtype() const { return local_.q.dtype; }
    foveal_tensor packed(const Region& region, foveal_dtype type, int64_t first,
                         std::initializer_list<int64_t> shape) const;
    // Of this hop, foreign rows of k or v: [b, rows, heads, channels].
    foveal_tensor buffer(const Region& region, int32_t hop, int64_t channels) const;
    // Number `member` of the blocks [b, rows, heads, channels] that are exchanged.
    foveal_tensor packed_block(const Region& region, foveal_dtype type, int32_t member, int64_t rows, int64_t heads,
                               int64_t channels) const;

    // Are its keys in a buffer? Else in this rank's own rows.
    bool is_foreign(const Cell& cell) const { return cell.hop != 0 || plan_.method.gathers; }
    // The k and v of a cell.
    Pair keys_of(const Cell& cell) const;
    // The first query of cell number `number` stands here, if there are slopes.
    const int32_t* offset_of(size_t number) const { return offsets_ == nullptr ? nullptr : offsets_ + number; }

    // Whatever of k and v travels in this hop, all at once: kernels from now on begin when it is there.
    void post(int32_t hop);

    // ---- messages, between begin() and end(). Rows are of one of the batch, and lie together.
    void send_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer);
    void recv_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer);
    int32_t rank_of(int32_t crew) const { return crew * plan_.method.head_ranks + plan_.member(); }
    int32_t rank_of_member(int32_t member) const { return plan_.crew() * plan_.method.head_ranks + member; }

    void copy(const Pair& from, const Pair& to) {
        copy_rows(from, to, packed(plan_.regions.zeros, FOVEAL_I32, 0, {problem().batch}), local_.backend, compute_);
    }

    Shards crew_shards() const;
    // Their own rows of all heads for the crew's rows of this rank's heads.
    void exchange_rows_for_heads(std::span<const Journey> journeys);

    const Plan& plan_;
    Communicator& communicator_;
    const foveal_forward_args& local_;
    std::byte* const base_;
    const int32_t* const offsets_;
    void* const compute_;
    void* const communication_;
    Shards shards_{};

   private:
    void send_and_receive(const std::vector<Move>& moves, int32_t member, const foveal_tensor& block,
                          const foveal_tensor& crew);
};

}  // namespace foveal::parallel
