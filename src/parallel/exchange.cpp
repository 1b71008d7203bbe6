#include "parallel/exchange.hpp"

#include <string>

#include "foveal/types.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {

void check(foveal_status status) {
    if (status != FOVEAL_OK) throw Error(status, foveal_last_error());
}

// What appending to a cache does whose sequences are empty so far.
void copy_rows(const Pair& from, const Pair& to, const foveal_tensor& zeros, foveal_backend backend, void* stream) {
    if (from.first.shape[0] == 0 || from.first.shape[1] == 0) return;
    foveal_append_args args;
    foveal_append_args_init(&args);
    args.backend = backend;
    args.k = from.first;
    args.k_cache = to.first;
    args.v = from.second;
    args.v_cache = to.second;
    args.cache_lengths = zeros;
    check(foveal_append(&args, stream));
}

void require_workspace(const void* workspace, uint64_t workspace_bytes, uint64_t needed) {
    constexpr uintptr_t kAlignment = 256;
    if (workspace_bytes < needed)
        refuse("workspace_bytes is " + std::to_string(workspace_bytes) + "; the call needs " + std::to_string(needed));
    if (workspace == nullptr && needed > 0) refuse("workspace is NULL; the call needs one");
    if (reinterpret_cast<uintptr_t>(workspace) % kAlignment != 0) refuse("workspace is not aligned to 256 bytes");
}

void check_call(const Plan& plan, const Communicator& communicator, const foveal_parallel_args& args,
                const foveal_forward_args& local) {
    if (communicator.rank() != plan.problem.rank || communicator.ranks() != plan.problem.ranks)
        refuse("the communicator is of rank " + std::to_string(communicator.rank()) + " of " +
               std::to_string(communicator.ranks()) + ", the plan of rank " + std::to_string(plan.problem.rank) +
               " of " + std::to_string(plan.problem.ranks));
    if (local_problem(local) != plan.problem.local)
        refuse("args describe another problem than the plan was made for; the plan's:\n" + describe(plan));
    require_workspace(args.workspace, args.workspace_bytes, plan.regions.total_bytes);
    if (local.backend == FOVEAL_BACKEND_SM90 && !plan.offsets.empty() && args.offsets == nullptr)
        refuse("offsets is NULL beside forward.alibi_slopes; it holds foveal_parallel_plan_offsets() on the device");
    if (local.backend == FOVEAL_BACKEND_CPU && args.communication_stream != nullptr)
        refuse("communication_stream is not NULL; the cpu backend has no streams");
    foveal_forward_args plain = local;  // bias and mask are checked with the keys of each call
    plain.bias = plain.mask = {};
    pointers_of(plain);
}

Exchange::Exchange(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
                   const foveal_forward_args& local, void* stream)
    : plan_(plan),
      communicator_(communicator),
      local_(local),
      base_(static_cast<std::byte*>(args.workspace)),
      offsets_(plan.offsets.empty()                  ? nullptr
               : local.backend == FOVEAL_BACKEND_CPU ? plan.offsets.data()
                                                     : args.offsets),
      compute_(stream),
      communication_(args.communication_stream == nullptr ? stream : args.communication_stream) {
    shards_ = {local.q, local.k, local.v, local.out, local.lse};
}

foveal_tensor Exchange::packed(const Region& region, foveal_dtype type, int64_t first,
                               std::initializer_list<int64_t> shape) const {
    return packed_tensor(base_ + region.offset, type, first, shape);
}

foveal_tensor Exchange::buffer(const Region& region, int32_t hop, int64_t channels) const {
    const Hop& of = plan_.schedule.hops[static_cast<size_t>(hop)];
    return packed(region, dtype(), 0, {problem().batch, of.buffer_rows, plan_.heads().heads_k, channels});
}

foveal_tensor Exchange::packed_block(const Region& region, foveal_dtype type, int32_t member, int64_t rows,
                                     int64_t heads, int64_t channels) const {
    return packed(region, type, member * problem().batch * rows * heads * channels,
                  {problem().batch, rows, heads, channels});
}

Pair Exchange::keys_of(const Cell& cell) const {
    if (cell.keys == 0) return {rows_of(shards_.k, 1, 0, 0), rows_of(shards_.v, 1, 0, 0)};
    const auto keys = [&](const foveal_tensor& own, const Region& region, int64_t channels) {
        return rows_of(is_foreign(cell) ? buffer(region, cell.hop, channels) : own, 1, cell.row, cell.keys);
    };
    return {keys(shards_.k, plan_.regions.keys, problem().head_dim),
            keys(shards_.v, plan_.regions.values, problem().head_dim_v)};
}

void Exchange::post(int32_t hop) {
    const std::vector<Send>& sends = plan_.sends[static_cast<size_t>(hop)];
    const std::vector<Transfer>& transfers = plan_.schedule.hops[static_cast<size_t>(hop)].transfers;
    if (sends.empty() && transfers.empty()) return;
    const foveal_tensor keys = buffer(plan_.regions.keys, hop, problem().head_dim);
    const foveal_tensor values = buffer(plan_.regions.values, hop, problem().head_dim_v);
    communicator_.events().order(compute_, communication_);  // the keys before are used
    communicator_.begin();
    for (const Send& send : sends)
        for (int64_t i = 0; i < problem().batch; ++i)
            for (const foveal_tensor* t : {&shards_.k, &shards_.v})
                send_rows(*t, i, send.row, send.rows, rank_of(send.crew));
    for (const Transfer& transfer : transfers)
        for (int64_t i = 0; i < problem().batch; ++i)
            for (const foveal_tensor* t : {&keys, &values})
                recv_rows(*t, i, transfer.buffer_row, transfer.rows, rank_of(transfer.source));
    communicator_.end(communication_);
    communicator_.events().order(communication_, compute_);
}

void Exchange::send_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer) {
    communicator_.send(rows_at(t, batch, row), bytes_of_rows(t, rows), peer, communication_);
}

void Exchange::recv_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer) {
    communicator_.recv(rows_at(t, batch, row), bytes_of_rows(t, rows), peer, communication_);
}

Shards Exchange::crew_shards() const {
    const ForwardProblem& p = problem();
    const HeadPart heads = plan_.heads();
    const int64_t rows_q = plan_.crew_rows_q(), rows_k = plan_.crew_rows_k();
    const Regions& regions = plan_.regions;
    Shards shards{packed(regions.crew_q, dtype(), 0, {p.batch, rows_q, heads.heads_q, p.head_dim}),
                  packed(regions.crew_k, dtype(), 0, {p.batch, rows_k, heads.heads_k, p.head_dim}),
                  packed(regions.crew_v, dtype(), 0, {p.batch, rows_k, heads.heads_k, p.head_dim_v}),
                  packed(regions.crew_out, dtype(), 0, {p.batch, rows_q, heads.heads_q, p.head_dim_v}),
                  {}};
    if (p.wants_lse) shards.lse = packed(regions.crew_lse, FOVEAL_F32, 0, {p.batch, heads.heads_q, rows_q});
    return shards;
}

// This rank's rows of the heads that `member` has go there, and its rows of this rank's heads come.
void Exchange::send_and_receive(const std::vector<Move>& moves, int32_t member, const foveal_tensor& block,
                                const foveal_tensor& crew) {
    for (const Move& move : moves)
        for (int64_t i = 0; i < problem().batch && move.member == plan_.member(); ++i)
            send_rows(block, i, move.row, move.rows, rank_of_member(member));
    for (const Move& move : moves)
        for (int64_t i = 0; i < problem().batch && move.member == member; ++i)
            recv_rows(crew, i, move.crew_row, move.rows, rank_of_member(member));
}

void Exchange::exchange_rows_for_heads(std::span<const Journey> journeys) {
    const ForwardProblem& p = problem();
    const auto blocks_of = [&](const Journey& j, int32_t member, const HeadPart& heads) {
        const int64_t count = j.is_of_keys ? heads.heads_k : heads.heads_q, rows = j.is_of_keys ? p.rows_k : p.rows_q;
        const auto block = [&](const foveal_tensor& own, const Region& region) {
            if (own.rank == 0) return foveal_tensor{};
            return packed_block(region, own.dtype, member, rows, count, own.shape[3]);
        };
        return Pair{block(j.own.first, j.packed_first), block(j.own.second, j.packed_second)};
    };
    for (int32_t member = 0; member < plan_.method.head_ranks; ++member) {
        const HeadPart heads = head_part(plan_.problem, plan_.method, member);
        for (const Journey& j : journeys) {
            const int64_t first = j.is_of_keys ? heads.first_k : heads.first_q,
                          count = j.is_of_keys ? heads.heads_k : heads.heads_q;
            copy({rows_of(j.own.first, 2, first, count), rows_of(j.own.second, 2, first, count)},
                 blocks_of(j, member, heads));
        }
    }
    communicator_.events().order(compute_, communication_);
    communicator_.begin();
    for (int32_t member = 0; member < plan_.method.head_ranks; ++member) {
        const HeadPart heads = head_part(plan_.problem, plan_.method, member);
        for (const Journey& j : journeys) {
            const Pair blocks = blocks_of(j, member, heads);
            const std::vector<Move>& moves = j.is_of_keys ? plan_.moves_k : plan_.moves_q;
            send_and_receive(moves, member, blocks.first, j.crew.first);
            if (blocks.second.rank != 0) send_and_receive(moves, member, blocks.second, j.crew.second);
        }
    }
    communicator_.end(communication_);
    communicator_.events().order(communication_, compute_);
}

}  // namespace foveal::parallel
