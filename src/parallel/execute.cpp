// One rank's way through a plan. Hop h of a ring, on two streams:
//
//   communication   | hop 1 arrives  | hop 2 arrives       | hop 3 arrives, where hop 1 was ...
//   compute         | own keys       | keys of hop 1       | keys of hop 2       ... | merge
//
// The partial results of a stretch are merged in the order of its cells, whenever they come: its bits follow from the
// plan.
#include "parallel/execute.hpp"

#include <algorithm>
#include <string>

#include "foveal/types.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

void check(foveal_status status) {
    if (status != FOVEAL_OK) throw Error(status, foveal_last_error());
}

// q, k, v, out and lse of a crew: the caller's own, or in the workspace.
struct Shards {
    foveal_tensor q, k, v, out, lse;
};

class Execution {
   public:
    Execution(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
              const foveal_forward_args& local, void* stream)
        : plan_(plan),
          communicator_(communicator),
          local_(local),
          base_(static_cast<std::byte*>(args.workspace)),
          offsets_(local.backend == FOVEAL_BACKEND_CPU ? plan.offsets.data() : args.offsets),
          compute_(stream),
          communication_(args.communication_stream == nullptr ? stream : args.communication_stream) {}

    void run() {
        if (plan_.method.head_ranks == 1) {
            shards_ = {local_.q, local_.k, local_.v, local_.out, local_.lse};
            run_crew();
            return;
        }
        shards_ = crew_shards();
        exchange_rows_for_heads();
        run_crew();
        exchange_heads_for_rows();
    }

   private:
    const ForwardProblem& problem() const { return plan_.problem.local; }
    foveal_dtype dtype() const { return local_.q.dtype; }

    foveal_tensor packed(const Region& region, foveal_dtype type, int64_t first, std::initializer_list<int64_t> shape) {
        return packed_tensor(base_ + region.offset, type, first, shape);
    }

    // ---- all hops of one crew

    void run_crew() {
        const auto hops = static_cast<int32_t>(plan_.schedule.hops.size());
        if (plan_.method.gathers) {
            communicator_.events().order(compute_, communication_);
            post(0);
        }
        for (int32_t hop = 0; hop < hops; ++hop) {
            communicator_.events().order(communication_, compute_);  // hop's keys are there
            communicator_.events().order(compute_, communication_);  // those of the hop before it are used
            if (hop + 1 < hops) post(hop + 1);
            compute(hop);
        }
        communicator_.events().order(communication_, compute_);  // what was sent is the caller's again
    }

    foveal_tensor buffer(const Region regions[2], int32_t hop, int64_t channels) {
        const Hop& of = plan_.schedule.hops[static_cast<size_t>(hop)];
        return packed(regions[hop % 2], dtype(), 0, {problem().batch, of.buffer_rows, plan_.heads().heads_k, channels});
    }

    // Whatever travels in this hop, all at once.
    void post(int32_t hop) {
        const std::vector<Send>& sends = plan_.sends[static_cast<size_t>(hop)];
        const std::vector<Transfer>& transfers = plan_.schedule.hops[static_cast<size_t>(hop)].transfers;
        if (sends.empty() && transfers.empty()) return;
        const foveal_tensor keys = buffer(plan_.regions.keys, hop, problem().head_dim);
        const foveal_tensor values = buffer(plan_.regions.values, hop, problem().head_dim_v);
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
    }

    int32_t rank_of(int32_t crew) const { return crew * plan_.method.head_ranks + plan_.member(); }

    // Rows of one of the batch, which lie together.
    void send_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer) {
        communicator_.send(rows_at(t, batch, row), bytes_of_rows(t, rows), peer, communication_);
    }
    void recv_rows(const foveal_tensor& t, int64_t batch, int64_t row, int64_t rows, int32_t peer) {
        communicator_.recv(rows_at(t, batch, row), bytes_of_rows(t, rows), peer, communication_);
    }

    // ---- kernels

    void compute(int32_t hop) {
        size_t number = 0;  // of the cell, over all stretches
        for (const Stretch& stretch : plan_.schedule.stretches) {
            for (size_t i = 0; i < stretch.cells.size(); ++i, ++number) {
                if (stretch.cells[i].hop != hop) continue;
                compute_cell(stretch, i, offsets_ == nullptr ? nullptr : offsets_ + number);
                if (stretch.cells.size() == 1) continue;
                const bool is_last = i + 1 == stretch.cells.size();
                if (is_last || (i + 1) % kParts == 0) merge_parts(stretch, i, is_last);
            }
        }
    }

    foveal_tensor part_out(const Stretch& stretch, size_t slot) {
        return part_of(plan_.regions.parts, static_cast<foveal_dtype>(plan_.part_dtype), stretch, slot);
    }
    foveal_tensor part_lse(const Stretch& stretch, size_t slot) {
        return lse_of(plan_.regions.part_lses, stretch, slot);
    }

    // The stretch's rows of array number `slot` of outs.
    foveal_tensor part_of(const Region& region, foveal_dtype type, const Stretch& stretch, size_t slot) {
        const int64_t rows = plan_.crew_rows_q(), heads = plan_.heads().heads_q;
        const int64_t elements = problem().batch * rows * heads * problem().head_dim_v;
        return rows_of(packed(region, type, static_cast<int64_t>(slot) * elements,
                              {problem().batch, rows, heads, problem().head_dim_v}),
                       1, stretch.row, stretch.rows);
    }
    foveal_tensor lse_of(const Region& region, const Stretch& stretch, size_t slot) {
        const int64_t rows = plan_.crew_rows_q(), heads = plan_.heads().heads_q;
        return rows_of(packed(region, FOVEAL_F32, static_cast<int64_t>(slot) * problem().batch * rows * heads,
                              {problem().batch, heads, rows}),
                       2, stretch.row, stretch.rows);
    }

    void compute_cell(const Stretch& stretch, size_t index, const int32_t* offset) {
        const Cell& cell = stretch.cells[index];
        foveal_forward_args args = cell_args(plan_, local_, stretch, cell, index == 0, offset);
        const bool is_foreign = cell.hop != 0 || plan_.method.gathers;
        args.q = rows_of(shards_.q, 1, stretch.row, stretch.rows);
        if (cell.keys == 0) {
            args.k = rows_of(shards_.k, 1, 0, 0);
            args.v = rows_of(shards_.v, 1, 0, 0);
        } else {
            args.k = rows_of(is_foreign ? buffer(plan_.regions.keys, cell.hop, problem().head_dim) : shards_.k, 1,
                             cell.row, cell.keys);
            args.v = rows_of(is_foreign ? buffer(plan_.regions.values, cell.hop, problem().head_dim_v) : shards_.v, 1,
                             cell.row, cell.keys);
        }
        const bool is_part = stretch.cells.size() > 1;
        args.out = is_part ? part_out(stretch, index % kParts) : rows_of(shards_.out, 1, stretch.row, stretch.rows);
        args.lse = is_part ? part_lse(stretch, index % kParts) : rows_of(shards_.lse, 2, stretch.row, stretch.rows);
        check(foveal_forward(&args, compute_));
    }

    void merge(std::initializer_list<foveal_tensor> outs, std::initializer_list<foveal_tensor> lses, int32_t parts,
               const foveal_tensor& out, const foveal_tensor& lse) {
        foveal_merge_args args;
        foveal_merge_args_init(&args);
        args.backend = local_.backend;
        args.parts = parts;
        args.outs = outs.begin();
        args.lses = lses.begin();
        args.out = out;
        args.lse = lse;
        check(foveal_merge(&args, compute_));
    }

    // The parts that there are, up to cell `index`. A stretch of more than kParts is summed up in f32 meanwhile.
    void merge_parts(const Stretch& stretch, size_t index, bool is_last) {
        static_assert(kParts == 4);
        const auto parts = static_cast<int32_t>(index % kParts) + 1;
        const auto merge_into = [&](const foveal_tensor& out, const foveal_tensor& lse) {
            merge({part_out(stretch, 0), part_out(stretch, 1), part_out(stretch, 2), part_out(stretch, 3)},
                  {part_lse(stretch, 0), part_lse(stretch, 1), part_lse(stretch, 2), part_lse(stretch, 3)}, parts, out,
                  lse);
        };
        const foveal_tensor out = rows_of(shards_.out, 1, stretch.row, stretch.rows);
        const foveal_tensor lse = rows_of(shards_.lse, 2, stretch.row, stretch.rows);
        const bool is_rounded_last = plan_.part_dtype != problem().dtype;
        if (stretch.cells.size() <= kParts && !is_rounded_last) return merge_into(out, lse);
        const foveal_tensor sum = part_of(plan_.regions.sums, FOVEAL_F32, stretch, 0),
                            next = part_of(plan_.regions.sums, FOVEAL_F32, stretch, 1),
                            sum_lse = lse_of(plan_.regions.sum_lses, stretch, 0),
                            next_lse = lse_of(plan_.regions.sum_lses, stretch, 1);
        if (stretch.cells.size() <= kParts) {
            merge_into(sum, lse);
            return copy(sum, out, nullptr, nullptr);
        }
        if (index < kParts) return merge_into(sum, sum_lse);
        merge_into(next, next_lse);
        const bool is_f32 = dtype() == FOVEAL_F32;
        const bool to_lse = is_last && lse.rank != 0;
        merge({sum, next}, {sum_lse, next_lse}, 2, is_last && is_f32 ? out : sum, to_lse ? lse : sum_lse);
        if (is_last && !is_f32) copy(sum, out, nullptr, nullptr);
    }

    // Rows to another place, and to its type: what appending to a cache does whose sequences are empty so far.
    void copy(const foveal_tensor& from, const foveal_tensor& to, const foveal_tensor* from_v,
              const foveal_tensor* to_v) {
        if (from.shape[0] == 0 || from.shape[1] == 0) return;
        foveal_append_args args;
        foveal_append_args_init(&args);
        args.backend = local_.backend;
        args.k = from;
        args.k_cache = to;
        if (from_v != nullptr) {
            args.v = *from_v;
            args.v_cache = *to_v;
        }
        args.cache_lengths = packed(plan_.regions.zeros, FOVEAL_I32, 0, {problem().batch});
        check(foveal_append(&args, compute_));
    }

    // ---- rows for heads and back

    Shards crew_shards() {
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

    // This rank's rows of the heads that `member` has, in the workspace.
    foveal_tensor packed_block(const Region& region, int32_t member, int64_t rows, int64_t heads, int64_t channels) {
        return packed(region, dtype(), member * problem().batch * rows * heads * channels,
                      {problem().batch, rows, heads, channels});
    }

    struct Blocks {
        foveal_tensor q, k, v;
    };
    Blocks packed_blocks(int32_t member, const HeadPart& heads) {
        const ForwardProblem& p = problem();
        return {packed_block(plan_.regions.packed_q, member, p.rows_q, heads.heads_q, p.head_dim),
                packed_block(plan_.regions.packed_k, member, p.rows_k, heads.heads_k, p.head_dim),
                packed_block(plan_.regions.packed_v, member, p.rows_k, heads.heads_k, p.head_dim_v)};
    }

    int32_t rank_of_member(int32_t member) const { return plan_.crew() * plan_.method.head_ranks + member; }

    // This rank's rows of the heads that `member` has go there, and its rows of this rank's heads come.
    void exchange_moves(const std::vector<Move>& moves, int32_t member, const foveal_tensor& block,
                        const foveal_tensor& crew) {
        for (const Move& move : moves)
            for (int64_t i = 0; i < problem().batch && move.member == plan_.member(); ++i)
                send_rows(block, i, move.row, move.rows, rank_of_member(member));
        for (const Move& move : moves)
            for (int64_t i = 0; i < problem().batch && move.member == member; ++i)
                recv_rows(crew, i, move.crew_row, move.rows, rank_of_member(member));
    }

    void exchange_rows_for_heads() {
        const int32_t members = plan_.method.head_ranks;
        for (int32_t member = 0; member < members; ++member) {
            const HeadPart heads = head_part(plan_.problem, plan_.method, member);
            const Blocks blocks = packed_blocks(member, heads);
            const foveal_tensor k = rows_of(local_.k, 2, heads.first_k, heads.heads_k),
                                v = rows_of(local_.v, 2, heads.first_k, heads.heads_k);
            copy(rows_of(local_.q, 2, heads.first_q, heads.heads_q), blocks.q, nullptr, nullptr);
            copy(k, blocks.k, &v, &blocks.v);
        }
        communicator_.events().order(compute_, communication_);
        communicator_.begin();
        for (int32_t member = 0; member < members; ++member) {
            const Blocks blocks = packed_blocks(member, head_part(plan_.problem, plan_.method, member));
            exchange_moves(plan_.moves_q, member, blocks.q, shards_.q);
            exchange_moves(plan_.moves_k, member, blocks.k, shards_.k);
            exchange_moves(plan_.moves_k, member, blocks.v, shards_.v);
        }
        communicator_.end(communication_);
        communicator_.events().order(communication_, compute_);
    }

    // Of these rows of this rank, from every member those of its heads.
    void receive_results(const Move& move) {
        const ForwardProblem& p = problem();
        const int64_t heads = plan_.heads().heads_q;
        for (int32_t member = 0; member < plan_.method.head_ranks; ++member) {
            const foveal_tensor block = packed_block(plan_.regions.packed_out, member, p.rows_q, heads, p.head_dim_v);
            for (int64_t i = 0; i < p.batch; ++i) {
                recv_rows(block, i, move.row, move.rows, rank_of_member(member));
                for (int64_t head = 0; head < heads && p.wants_lse; ++head)
                    communicator_.recv(lse_at(local_.lse, i, member * heads + head, move.row), bytes_of_lses(move.rows),
                                       rank_of_member(member), communication_);
            }
        }
    }

    void exchange_heads_for_rows() {
        const int32_t members = plan_.method.head_ranks;
        const ForwardProblem& p = problem();
        const int64_t heads = plan_.heads().heads_q;
        communicator_.events().order(compute_, communication_);
        communicator_.begin();
        for (const Move& move : plan_.moves_q) {
            for (int64_t i = 0; i < p.batch; ++i) {
                send_rows(shards_.out, i, move.crew_row, move.rows, rank_of_member(move.member));
                for (int64_t head = 0; head < heads && p.wants_lse; ++head)  // of which a head's rows lie together
                    communicator_.send(lse_at(shards_.lse, i, head, move.crew_row), bytes_of_lses(move.rows),
                                       rank_of_member(move.member), communication_);
            }
            if (move.member == plan_.member()) receive_results(move);
        }
        communicator_.end(communication_);
        communicator_.events().order(communication_, compute_);
        for (int32_t member = 0; member < members; ++member)
            copy(packed_block(plan_.regions.packed_out, member, p.rows_q, heads, p.head_dim_v),
                 rows_of(local_.out, 2, member * heads, heads), nullptr, nullptr);
    }

    const Plan& plan_;
    Communicator& communicator_;
    const foveal_forward_args& local_;
    std::byte* base_;
    const int32_t* offsets_;
    void* compute_;
    void* communication_;
    Shards shards_{};
};

void check_memory(const Plan& plan, const foveal_parallel_args& args, const foveal_forward_args& local) {
    constexpr uintptr_t kAlignment = 256;
    if (args.workspace_bytes < plan.regions.total_bytes)
        refuse("workspace_bytes is " + std::to_string(args.workspace_bytes) + "; the plan needs " +
               std::to_string(plan.regions.total_bytes));
    if (args.workspace == nullptr && plan.regions.total_bytes > 0) refuse("workspace is NULL; the plan needs one");
    if (reinterpret_cast<uintptr_t>(args.workspace) % kAlignment != 0) refuse("workspace is not aligned to 256 bytes");
    if (local.backend == FOVEAL_BACKEND_SM90 && !plan.offsets.empty() && args.offsets == nullptr)
        refuse("offsets is NULL beside forward.alibi_slopes; it holds foveal_parallel_plan_offsets() on the device");
    if (local.backend == FOVEAL_BACKEND_CPU && args.communication_stream != nullptr)
        refuse("communication_stream is not NULL; the cpu backend has no streams");
    foveal_forward_args plain = local;  // bias and mask are checked with the keys of each call
    plain.bias = plain.mask = {};
    pointers_of(plain);
}

}  // namespace

void execute(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args, void* stream) {
    if (communicator.rank() != plan.problem.rank || communicator.ranks() != plan.problem.ranks)
        refuse("the communicator is of rank " + std::to_string(communicator.rank()) + " of " +
               std::to_string(communicator.ranks()) + ", the plan of rank " + std::to_string(plan.problem.rank) +
               " of " + std::to_string(plan.problem.ranks));
    const foveal_forward_args local = local_args(*args.forward);
    if (local_problem(local) != plan.problem.local)
        refuse("args describe another problem than the plan was made for; the plan's:\n" + describe(plan));
    check_memory(plan, args, local);
    Execution(plan, communicator, args, local, stream).run();
}

}  // namespace foveal::parallel
