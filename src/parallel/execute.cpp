// One rank's way through a plan. A ring, on two streams:
//
//   communication   |          | hop 1 arrives |               | hop 2 arrives |     ...
//   compute         | own keys |               | keys of hop 1 |               | keys of hop 2 ... | merge
//
// An exchange beside a kernel would gain nothing and can lose much (docs/parallel.md, On a GPU): NCCL's CTAs hold SMs
// for which the forward has dealt out tiles already, and where the forward comes first, they wait for its end, while
// the peer's wait for them on SMs of its own.
// The partial results of a stretch are merged in the order of its cells, whenever they come: its bits follow from the
// plan.
#include "parallel/execute.hpp"

#include <algorithm>
#include <string>

#include "foveal/types.hpp"
#include "parallel/exchange.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

class Execution : Exchange {
   public:
    using Exchange::Exchange;

    void run() {
        if (plan_.method.head_ranks == 1) return run_crew();
        const Shards crew = crew_shards();
        const Regions& regions = plan_.regions;
        const Journey journeys[] = {{{local_.q, {}}, {crew.q, {}}, regions.packed_q, {}, false},
                                    {{local_.k, local_.v}, {crew.k, crew.v}, regions.packed_k, regions.packed_v, true}};
        exchange_rows_for_heads(journeys);
        shards_ = crew;
        run_crew();
        exchange_heads_for_rows();
    }

   private:
    // ---- all hops of one crew

    void run_crew() {
        for (int32_t hop = 0; hop < static_cast<int32_t>(plan_.schedule.hops.size()); ++hop) {
            post(hop);
            compute(hop);
        }
    }

    // ---- kernels

    void compute(int32_t hop) {
        size_t number = 0;  // of the cell, over all stretches
        for (const Stretch& stretch : plan_.schedule.stretches) {
            for (size_t i = 0; i < stretch.cells.size(); ++i, ++number) {
                if (stretch.cells[i].hop != hop) continue;
                compute_cell(stretch, i, offset_of(number));
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
        args.q = rows_of(shards_.q, 1, stretch.row, stretch.rows);
        const Pair keys = keys_of(cell);
        args.k = keys.first;
        args.v = keys.second;
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
        if (stretch.cells.size() <= kParts) return merge_into(out, lse);
        const foveal_tensor sum = part_of(plan_.regions.sums, FOVEAL_F32, stretch, 0),
                            next = part_of(plan_.regions.sums, FOVEAL_F32, stretch, 1),
                            sum_lse = lse_of(plan_.regions.sum_lses, stretch, 0),
                            next_lse = lse_of(plan_.regions.sum_lses, stretch, 1);
        if (index < kParts) return merge_into(sum, sum_lse);
        merge_into(next, next_lse);
        merge({sum, next}, {sum_lse, next_lse}, 2, is_last ? out : sum, is_last && lse.rank != 0 ? lse : sum_lse);
    }

    // ---- heads for rows

    // Of these rows of this rank, from every member those of its heads.
    void receive_results(const Move& move) {
        const ForwardProblem& p = problem();
        const int64_t heads = plan_.heads().heads_q;
        for (int32_t member = 0; member < plan_.method.head_ranks; ++member) {
            const foveal_tensor block =
                packed_block(plan_.regions.packed_out, dtype(), member, p.rows_q, heads, p.head_dim_v);
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
            copy({packed_block(plan_.regions.packed_out, dtype(), member, p.rows_q, heads, p.head_dim_v), {}},
                 {rows_of(local_.out, 2, member * heads, heads), {}});
    }
};

}  // namespace

void execute(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args, void* stream) {
    if (plan.problem.gradients)
        refuse("plan is one of foveal_parallel_backward_plan_create(); this is the forward call");
    const foveal_forward_args local = local_args(*args.forward);
    check_call(plan, communicator, args, local);
    Execution(plan, communicator, args, local, stream).run();
}

}  // namespace foveal::parallel
