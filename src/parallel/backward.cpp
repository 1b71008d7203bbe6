// One rank's gradients. A cell's are those of foveal_backward() with the rows' out and log-sum-exp of the whole
// sequence, from which the softmax's weights follow, so that they are summands of the whole's. In hop h:
//
//   k, v of the rank h before this one arrive | cells: dq is added here, dk and dv to sums of the hop | these go back
//   to their rank, which adds them to its own
//
// Everything is summed in f32, in an order that follows from the plans: stretches and cells within a hop, hops one
// after the other. It is rounded once, at the end. The sums are made on the host: the CPU's memory.
#include "parallel/backward.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "foveal/types.hpp"
#include "parallel/bias_gradient.hpp"
#include "parallel/exchange.hpp"
#include "parallel/shards.hpp"
#include "problem/argument.hpp"

namespace foveal::parallel {
namespace {

// to += part, both f32 of the same shape.
void add(const foveal_tensor& to, const foveal_tensor& part) {
    for (int64_t b = 0; b < to.shape[0]; ++b)
        for (int64_t row = 0; row < to.shape[1]; ++row)
            for (int64_t head = 0; head < to.shape[2]; ++head) {
                float* const sums =
                    static_cast<float*>(to.data) + b * to.stride[0] + row * to.stride[1] + head * to.stride[2];
                const float* const added = static_cast<const float*>(part.data) + b * part.stride[0] +
                                           row * part.stride[1] + head * part.stride[2];
                for (int64_t c = 0; c < to.shape[3]; ++c) sums[c] += added[c];
            }
}

// f32 tensors [b, rows, heads, channels] without gaps of dk and dv; those that are not asked are absent.
struct KeySums {
    foveal_tensor dk{}, dv{};

    KeySums rows(int64_t first, int64_t count) const {
        return {rows_of(dk, 1, first, count), rows_of(dv, 1, first, count)};
    }
    std::vector<foveal_tensor> asked() const {
        std::vector<foveal_tensor> both;
        for (const foveal_tensor& t : {dk, dv})
            if (t.rank != 0) both.push_back(t);
        return both;
    }
};

void add(const KeySums& to, const KeySums& part) {
    if (to.dk.rank != 0) add(to.dk, part.dk);
    if (to.dv.rank != 0) add(to.dv, part.dv);
}

class Backward : Exchange {
   public:
    Backward(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
             const foveal_forward_args& local, const foveal_backward_args& gradients, void* stream)
        : Exchange(plan, communicator, args, local, stream),
          gradients_(gradients),
          asked_(*plan.problem.gradients),
          regions_(plan.regions.gradients),
          dout_(gradients.dout),
          dlse_(gradients.dlse),
          dbias_(plan, gradients.dbias),
          slope_rows_(local.alibi_slopes.rank == 2 ? local.alibi_slopes.shape[0] : 1),
          head_sums_(static_cast<size_t>((1 + slope_rows_) * heads().heads_q)),
          cell_dsinks_(static_cast<size_t>(heads().heads_q)),
          cell_dalibi_(static_cast<size_t>(problem().batch * heads().heads_q)) {}

    void run() {
        if (plan_.method.head_ranks > 1) enter_crew();
        clear(regions_.dq);
        clear(regions_.dk);
        clear(regions_.dv);
        dbias_.clear();
        for (int32_t hop = 0; hop < static_cast<int32_t>(plan_.schedule.hops.size()); ++hop) {
            post(hop);
            clear(regions_.hop_dk);
            clear(regions_.hop_dv);
            compute(hop);
            return_keys(hop);
        }
        if (plan_.method.head_ranks > 1)
            leave_crew();
        else
            store();
        if (asked_.wants_dbias)
            dbias_.store(communicator_, packed(plan_.regions.zeros, FOVEAL_I32, 0, {problem().batch}), communication_);
        if (asked_.wants_dsinks || asked_.wants_dalibi) store_head_sums();
    }

   private:
    HeadPart heads() const { return plan_.heads(); }
    void clear(const Region& region) { std::memset(base_ + region.offset, 0, region.bytes); }

    foveal_tensor sums(const Region& region, int64_t rows, int64_t row_heads, int64_t channels) const {
        return packed(region, FOVEAL_F32, 0, {problem().batch, rows, row_heads, channels});
    }
    foveal_tensor query_sums(const Region& region, int64_t rows) const {
        return asked_.wants_dq ? sums(region, rows, heads().heads_q, problem().head_dim) : foveal_tensor{};
    }
    KeySums key_sums(const Region& dk, const Region& dv, int64_t rows) const {
        KeySums both;
        if (asked_.wants_dk) both.dk = sums(dk, rows, heads().heads_k, problem().head_dim);
        if (asked_.wants_dv) both.dv = sums(dv, rows, heads().heads_k, problem().head_dim_v);
        return both;
    }
    foveal_tensor dq_sums() const { return query_sums(regions_.dq, plan_.crew_rows_q()); }
    KeySums own_sums() const { return key_sums(regions_.dk, regions_.dv, plan_.crew_rows_k()); }
    KeySums hop_sums(int32_t hop) const {
        const Hop& of = plan_.schedule.hops[static_cast<size_t>(hop)];
        return key_sums(regions_.hop_dk, regions_.hop_dv, of.buffer_rows);
    }

    // ---- cells

    void compute(int32_t hop) {
        size_t number = 0;  // of the cell, over all stretches
        for (const Stretch& stretch : plan_.schedule.stretches)
            for (size_t i = 0; i < stretch.cells.size(); ++i, ++number)
                if (stretch.cells[i].hop == hop) compute_cell(stretch, stretch.cells[i], i == 0, offset_of(number));
    }

    void compute_cell(const Stretch& stretch, const Cell& cell, bool first, const int32_t* offset) {
        foveal_forward_args forward = cell_args(plan_, local_, stretch, cell, first, offset);
        const Pair keys = keys_of(cell);
        forward.q = rows_of(shards_.q, 1, stretch.row, stretch.rows);
        forward.k = keys.first;
        forward.v = keys.second;
        forward.out = rows_of(shards_.out, 1, stretch.row, stretch.rows);
        forward.lse = rows_of(shards_.lse, 2, stretch.row, stretch.rows);
        const bool has_keys = cell.keys > 0, wants_dsinks = asked_.wants_dsinks && first;
        const foveal_tensor dq = query_sums(regions_.cell_dq, has_keys ? stretch.rows : 0);
        const KeySums of_keys = key_sums(regions_.cell_dk, regions_.cell_dv, cell.keys);
        foveal_backward_args args;
        foveal_backward_args_init(&args);
        args.forward = &forward;
        args.dout = rows_of(dout_, 1, stretch.row, stretch.rows);
        args.dlse = rows_of(dlse_, 2, stretch.row, stretch.rows);
        if (has_keys) {
            args.dq = dq;
            args.dk = of_keys.dk;
            args.dv = of_keys.dv;
            args.dbias = dbias_.of_cell(stretch, cell);
            if (asked_.wants_dalibi) args.dalibi_slopes = like(forward.alibi_slopes, cell_dalibi_.data());
        }
        if (wants_dsinks) args.dsinks = like(forward.sinks, cell_dsinks_.data());
        const bool asks_any =
            asked_.wants_dq || asked_.wants_dk || asked_.wants_dv || asked_.wants_dbias || asked_.wants_dalibi;
        if (!(has_keys && asks_any) && !wants_dsinks) return;
        check(foveal_backward(&args, compute_));
        if (wants_dsinks) add_head_sums(cell_dsinks_, 1, 0);
        if (!has_keys) return;
        dbias_.add(stretch, cell);
        if (asked_.wants_dalibi) add_slope_sums(stretch, forward.alibi_slopes);
        if (asked_.wants_dq) add(rows_of(dq_sums(), 1, stretch.row, stretch.rows), dq);
        add((is_foreign(cell) ? hop_sums(cell.hop) : own_sums()).rows(cell.row, cell.keys), of_keys);
    }

    // A gradient of sinks or slopes, without gaps.
    static foveal_tensor like(const foveal_tensor& of, float* data) {
        foveal_tensor t = of;
        t.data = data;
        t.stride[of.rank - 1] = 1;
        if (of.rank == 2) t.stride[0] = of.shape[1];
        return t;
    }

    // ---- sums over ranks

    // Sums of a hop's foreign rows go back to where the rows came from, and of this crew's rows come back.
    void return_keys(int32_t hop) {
        const std::vector<Transfer>& transfers = plan_.schedule.hops[static_cast<size_t>(hop)].transfers;
        const std::vector<Send>& sends = plan_.sends[static_cast<size_t>(hop)];
        if (!(asked_.wants_dk || asked_.wants_dv) || (transfers.empty() && sends.empty())) return;
        int64_t rows = 0;
        for (const Send& send : sends) rows += send.rows;
        const KeySums foreign = hop_sums(hop), home = key_sums(regions_.home_dk, regions_.home_dv, rows);
        communicator_.begin();
        for (const Transfer& transfer : transfers)
            for (int64_t i = 0; i < problem().batch; ++i)
                for (const foveal_tensor& t : foreign.asked())
                    send_rows(t, i, transfer.buffer_row, transfer.rows, rank_of(transfer.source));
        int64_t row = 0;
        for (const Send& send : sends) {
            for (int64_t i = 0; i < problem().batch; ++i)
                for (const foveal_tensor& t : home.asked()) recv_rows(t, i, row, send.rows, rank_of(send.crew));
            row += send.rows;
        }
        communicator_.end(communication_);
        row = 0;
        for (const Send& send : sends) {
            add(own_sums().rows(send.row, send.rows), home.rows(row, send.rows));
            row += send.rows;
        }
    }

    // [1 + slope_rows_, heads]: the sinks', then the slopes'.
    void add_head_sums(const std::vector<float>& part, int64_t rows, int64_t first_row) {
        const int64_t row_heads = heads().heads_q;
        for (int64_t i = 0; i < rows * row_heads; ++i)
            head_sums_[static_cast<size_t>(first_row * row_heads + i)] +=
                static_cast<double>(part[static_cast<size_t>(i)]);
    }

    void add_slope_sums(const Stretch& stretch, const foveal_tensor& slopes) {
        const bool by_document = slopes.rank == 2 && problem().batch == 1;
        add_head_sums(cell_dalibi_, slopes.rank == 2 ? slopes.shape[0] : 1, 1 + (by_document ? stretch.sequence : 0));
    }

    // Every rank adds up all ranks' sums, in the same order.
    void store_head_sums() {
        const auto ranks = static_cast<size_t>(plan_.problem.ranks);
        const size_t count = head_sums_.size();
        std::vector<double> all(ranks * count);
        communicator_.begin();
        for (size_t rank = 0; rank < ranks; ++rank)
            communicator_.send(head_sums_.data(), count * sizeof(double), static_cast<int32_t>(rank), communication_);
        for (size_t rank = 0; rank < ranks; ++rank)
            communicator_.recv(all.data() + rank * count, count * sizeof(double), static_cast<int32_t>(rank),
                               communication_);
        communicator_.end(communication_);
        const int64_t heads_q = problem().heads_q, row_heads = heads().heads_q;
        for (int64_t row = 0; row <= slope_rows_; ++row) {
            for (int64_t head = 0; head < heads_q; ++head) {
                double total = 0;
                for (auto rank = static_cast<size_t>(head / row_heads); rank < ranks;
                     rank += static_cast<size_t>(plan_.method.head_ranks))
                    total += all[rank * count + static_cast<size_t>(row * row_heads + head % row_heads)];
                store_head_sum(row, head, static_cast<float>(total));
            }
        }
    }

    void store_head_sum(int64_t row, int64_t head, float value) {
        if (row == 0) {
            if (asked_.wants_dsinks) static_cast<float*>(gradients_.dsinks.data)[head] = value;
            return;
        }
        const foveal_tensor& slopes = gradients_.dalibi_slopes;
        if (slopes.rank != 0)
            static_cast<float*>(slopes.data)[(slopes.rank == 2 ? (row - 1) * slopes.stride[0] : 0) + head] = value;
    }

    void store() {
        const KeySums keys = own_sums();
        if (asked_.wants_dq) copy({dq_sums(), {}}, {gradients_.dq, {}});
        if (asked_.wants_dk) copy({keys.dk, {}}, {gradients_.dk, {}});
        if (asked_.wants_dv) copy({keys.dv, {}}, {gradients_.dv, {}});
    }

    // ---- rows for heads and back

    void enter_crew() {
        const ForwardProblem& p = problem();
        const Shards crew = crew_shards();
        const Regions& regions = plan_.regions;
        const foveal_tensor dout =
            packed(regions_.crew_dout, dtype(), 0, {p.batch, plan_.crew_rows_q(), heads().heads_q, p.head_dim_v});
        const Journey journeys[] = {
            {{local_.q, {}}, {crew.q, {}}, regions.packed_q, {}, false},
            {{local_.k, local_.v}, {crew.k, crew.v}, regions.packed_k, regions.packed_v, true},
            {{local_.out, dout_}, {crew.out, dout}, regions.packed_out, regions_.packed_dout, false}};
        exchange_rows_for_heads(journeys);
        foveal_tensor dlse{};
        if (asked_.has_dlse)
            dlse = packed(regions_.crew_dlse, FOVEAL_F32, 0, {p.batch, heads().heads_q, plan_.crew_rows_q()});
        exchange_lses(crew.lse, dlse);
        shards_ = crew;
        dout_ = dout;
        dlse_ = dlse;
    }

    // A head's rows lie together, and travel as they lie.
    void exchange_lses(const foveal_tensor& crew_lse, const foveal_tensor& crew_dlse) {
        const auto travel = [&](const foveal_tensor& own, const foveal_tensor& crew) {
            for (const Move& move : plan_.moves_q) {
                for (int64_t i = 0; i < problem().batch; ++i) {
                    for (int64_t head = 0; head < problem().heads_q && move.member == plan_.member(); ++head)
                        communicator_.send(lse_at(own, i, head, move.row), bytes_of_lses(move.rows),
                                           rank_of_member(static_cast<int32_t>(head / heads().heads_q)),
                                           communication_);
                    for (int64_t head = 0; head < heads().heads_q; ++head)
                        communicator_.recv(lse_at(crew, i, head, move.crew_row), bytes_of_lses(move.rows),
                                           rank_of_member(move.member), communication_);
                }
            }
        };
        communicator_.begin();
        travel(local_.lse, crew_lse);
        if (asked_.has_dlse) travel(dlse_, crew_dlse);
        communicator_.end(communication_);
    }

    // The crew's sums of this rank's heads go to the members whose rows they are; every member's come.
    void return_sums(const foveal_tensor& crew, const Region& blocks, const std::vector<Move>& moves, int64_t rows) {
        for (const Move& move : moves) {
            for (int64_t i = 0; i < problem().batch; ++i)
                send_rows(crew, i, move.crew_row, move.rows, rank_of_member(move.member));
            for (int32_t member = 0; member < plan_.method.head_ranks && move.member == plan_.member(); ++member)
                for (int64_t i = 0; i < problem().batch; ++i)
                    recv_rows(block(blocks, member, rows, crew), i, move.row, move.rows, rank_of_member(member));
        }
    }
    // What `member` has summed of this rank's rows.
    foveal_tensor block(const Region& blocks, int32_t member, int64_t rows, const foveal_tensor& crew) const {
        return packed_block(blocks, FOVEAL_F32, member, rows, crew.shape[2], crew.shape[3]);
    }

    void leave_crew() {
        const ForwardProblem& p = problem();
        const KeySums keys = own_sums();
        communicator_.begin();
        if (asked_.wants_dq) return_sums(dq_sums(), regions_.packed_dq, plan_.moves_q, p.rows_q);
        if (asked_.wants_dk) return_sums(keys.dk, regions_.packed_dk, plan_.moves_k, p.rows_k);
        if (asked_.wants_dv) return_sums(keys.dv, regions_.packed_dv, plan_.moves_k, p.rows_k);
        communicator_.end(communication_);
        const auto first_q = [](const HeadPart& part) { return part.first_q; };
        const auto first_k = [](const HeadPart& part) { return part.first_k; };
        if (asked_.wants_dq) store_blocks(dq_sums(), regions_.packed_dq, p.rows_q, gradients_.dq, first_q);
        if (asked_.wants_dk) store_blocks(keys.dk, regions_.packed_dk, p.rows_k, gradients_.dk, first_k);
        if (asked_.wants_dv) store_blocks(keys.dv, regions_.packed_dv, p.rows_k, gradients_.dv, first_k);
    }

    // Members that share a K/V head are neighbours, and their sums are added up first.
    template <class FirstHead>
    void store_blocks(const foveal_tensor& crew, const Region& blocks, int64_t rows, const foveal_tensor& to,
                      const FirstHead& first_head) {
        const auto head_of = [&](int32_t member) { return first_head(head_part(plan_.problem, plan_.method, member)); };
        for (int32_t member = 0; member < plan_.method.head_ranks;) {
            const foveal_tensor total = block(blocks, member, rows, crew);
            const int64_t head = head_of(member);
            while (++member < plan_.method.head_ranks && head_of(member) == head)
                add(total, block(blocks, member, rows, crew));
            copy({total, {}}, {rows_of(to, 2, head, crew.shape[2]), {}});
        }
    }

    const foveal_backward_args& gradients_;
    const BackwardProblem& asked_;
    const GradientRegions& regions_;
    foveal_tensor dout_, dlse_;  // as shards_
    BiasGradient dbias_;
    const int64_t slope_rows_;
    std::vector<double> head_sums_;  // of this rank
    std::vector<float> cell_dsinks_, cell_dalibi_;
};

}  // namespace

void differentiate(const Plan& plan, Communicator& communicator, const foveal_parallel_args& args,
                   const foveal_backward_args& gradients, void* stream) {
    if (!plan.problem.gradients) refuse("plan is one of foveal_parallel_plan_create(); this is the backward call");
    const foveal_forward_args local = local_args(*args.forward);
    check_call(plan, communicator, args, local);
    const foveal_backward_args asked = local_gradients(gradients, local);
    if (gradient_problem(asked) != *plan.problem.gradients)
        refuse("gradients are others than the plan was made for; the plan's:\n" + describe(plan));
    foveal_backward_args plain = asked;
    foveal_forward_args plain_forward = plain_args(local);
    plain_forward.bias = local.bias;  // lies apart from its gradient
    plain.forward = &plain_forward;
    pointers_of(plain);
    Backward(plan, communicator, args, local, asked, stream).run();
}

}  // namespace foveal::parallel
