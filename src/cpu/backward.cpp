#include "cpu/backward.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/backward_bias.hpp"
#include "cpu/backward_groups.hpp"
#include "cpu/head_group.hpp"
#include "cpu/schedule.hpp"
#include "cpu/sum_order.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

// Multiply-adds below which waking another thread costs more than it helps.
constexpr double kSerialMultiplyAdds = 1e6;
// Of the products that a forward pass makes, and that a backward pass does.
constexpr double kTimesForward = 2.5;

thread_local ThreadWorkspace workspace_of_thread;

// Keys [begin, end) of a group; the group's last part may be shorter, and its only one empty.
struct PartTask {
    int64_t group;
    int32_t part;
};

// The subtiles of each part: those of which a query sees one of its keys.
std::vector<Range> visits_of(const HeadGroup& group, int32_t part_keys, int32_t parts) {
    const auto subtiles = static_cast<int32_t>(subtiles_of(group.queries()));
    std::vector<Range> visits(static_cast<size_t>(parts), Range{subtiles, 0});
    for (int32_t subtile = 0; subtile < subtiles; ++subtile) {
        const int64_t first = subtile * subtile_queries(),
                      last = std::min(first + subtile_queries(), group.queries()) - 1;
        const Range seen{visible_keys(group.band, static_cast<int32_t>(first / group.heads)).begin,
                         visible_keys(group.band, static_cast<int32_t>(last / group.heads)).end};
        if (seen.size() == 0) continue;
        for (int32_t part = seen.begin / part_keys; part <= (seen.end - 1) / part_keys; ++part) {
            Range& range = visits[static_cast<size_t>(part)];
            range = {std::min(range.begin, subtile), subtile + 1};
        }
    }
    return visits;
}

// What the parts of a group share.
class GroupSums {
   public:
    GroupSums(const BackwardGroup& group, int32_t part_keys)
        : part_keys_(part_keys),
          parts_(std::max((group.forward.len_k + part_keys - 1) / part_keys, 1)),
          order_(visits_of(group.forward, part_keys, parts_)),
          parts_left_(parts_) {}

    int32_t parts() const { return parts_; }
    SumOrder& order() { return order_; }
    Range keys_of(int32_t part, int32_t len_k) const {
        return {part * part_keys_, std::min((part + 1) * part_keys_, len_k)};
    }
    // Zeros at first; the first part to ask makes them.
    float* dq(int64_t floats) {
        std::call_once(made_, [&] { std::fill_n(dq_.reserve(floats), floats, 0.0f); });
        return dq_.reserve(floats);
    }
    // [parts, heads]
    std::vector<double>& dalibi() { return dalibi_; }
    // Has every part been computed but this one?
    bool last_part() { return --parts_left_ == 0; }
    void release() { dq_ = {}; }

   private:
    const int32_t part_keys_, parts_;
    SumOrder order_;
    std::atomic<int32_t> parts_left_;
    std::once_flag made_;
    ThreadWorkspace dq_;
    std::vector<double> dalibi_;
};

// dq, dk, dv and dalibi_slopes: each part of a group's keys is a task.
class KeyPass {
   public:
    KeyPass(const BackwardProblem& problem, const BackwardPointers& pointers, const std::vector<Sequence>& sequences,
            const BackwardGroups& groups)
        : problem_(problem), of_(problem.forward), pointers_(pointers), sequences_(sequences), groups_(groups) {
        const int32_t part_keys = backward_part_keys(of_.head_dim, of_.head_dim_v);
        for (int64_t i = 0; i < groups.size(); ++i) {
            sums_.push_back(std::make_unique<GroupSums>(groups.of(i), part_keys));
            GroupSums& sums = *sums_.back();
            if (problem.wants_dalibi)
                sums.dalibi().resize(static_cast<size_t>(sums.parts() * groups.of(i).forward.heads));
            for (int32_t part = 0; part < sums.parts(); ++part) tasks_.push_back({i, part});
        }
    }

    // Parts of a group in ascending order, as order ask for.
    int64_t tasks() const { return static_cast<int64_t>(tasks_.size()); }

    void run(int64_t index) {
        const PartTask& task = tasks_[static_cast<size_t>(index)];
        GroupSums& sums = *sums_[static_cast<size_t>(task.group)];
        try {
            compute(task, sums);
        } catch (...) {
            sums.order().give_up();
            throw;
        }
    }

    void store_dalibi() const {
        if (pointers_.dalibi_slopes == nullptr) return;
        const bool by_sequence = problem_.dalibi.batch != 0;
        for (int64_t head = 0; head < of_.heads_q; ++head) {
            double total = 0;
            for (int64_t b = 0; b < of_.batch; ++b) {
                const double own = dalibi_of(b, head);
                total += own;
                if (by_sequence) store_slope(b, head, own);
            }
            if (!by_sequence) store_slope(0, head, total);
        }
    }

   private:
    void compute(const PartTask& task, GroupSums& sums) {
        const int64_t batch = task.group / groups_.per_sequence(), head_k = task.group % groups_.per_sequence();
        const Sequence& sequence = sequences_[static_cast<size_t>(batch)];
        BackwardGroup group = groups_.of(task.group);
        const int64_t dq_floats = subtiles_of(group.forward.queries()) * subtile_queries() * dq_rows(of_.head_dim);
        if (problem_.wants_dq) group.dq = sums.dq(dq_floats);
        if (problem_.wants_dk) group.dk = rows_of_keys(pointers_.dk, problem_.dk, batch, sequence, head_k);
        if (problem_.wants_dv) group.dv = rows_of_keys(pointers_.dv, problem_.dv, batch, sequence, head_k);
        group.dk_row = problem_.dk.row;
        group.dv_row = problem_.dv.row;
        if (problem_.wants_dalibi) group.dalibi = sums.dalibi().data() + task.part * group.forward.heads;
        float* const workspace = workspace_of_thread.reserve(backward_workspace_floats(of_.head_dim, of_.head_dim_v));
        compute_gradients(group, sums.keys_of(task.part, group.forward.len_k), sums.order(), task.part, workspace);
        if (!sums.last_part() || !problem_.wants_dq) return;
        const int64_t head_q = head_k * of_.heads_per_kv();
        void* const dq = advance(of_.dtype, pointers_.dq, offset_of(problem_.dq, batch, sequence.first_q, head_q));
        store_dq(group, 0, group.forward.queries(), dq, problem_.dq, workspace);
        sums.release();
    }

    void* rows_of_keys(void* tensor, const Strides& stride, int64_t batch, const Sequence& sequence,
                       int64_t head_k) const {
        return advance(of_.dtype, tensor, offset_of(stride, batch, sequence.first_k, head_k));
    }

    // Over the parts, in their order.
    double dalibi_of(int64_t batch, int64_t head) const {
        const int64_t heads = of_.heads_per_kv();
        GroupSums& sums = *sums_[static_cast<size_t>(batch * groups_.per_sequence() + head / heads)];
        double total = 0;
        for (int32_t part = 0; part < sums.parts(); ++part)
            total += sums.dalibi()[static_cast<size_t>(part * heads + head % heads)];
        return total;
    }

    void store_slope(int64_t batch, int64_t head, double value) const {
        pointers_.dalibi_slopes[offset_of(problem_.dalibi, batch, 0, head)] = static_cast<float>(value);
    }

    const BackwardProblem& problem_;
    const ForwardProblem& of_;
    const BackwardPointers& pointers_;
    const std::vector<Sequence>& sequences_;
    const BackwardGroups& groups_;
    std::vector<std::unique_ptr<GroupSums>> sums_;
    std::vector<PartTask> tasks_;
};

// dsinks: of each head, -sum over rows of exp(sink - lse) * D.
class SinkGradient {
   public:
    SinkGradient(const BackwardProblem& problem, const BackwardPointers& pointers, const BackwardGroups& groups)
        : problem_(problem), pointers_(pointers), groups_(groups), sums_(static_cast<size_t>(groups.size())) {}

    void run(int64_t index) {
        const BackwardGroup& group = groups_.of(index);
        const int64_t heads = group.forward.heads;
        std::vector<double>& sums = sums_[static_cast<size_t>(index)];
        sums.resize(static_cast<size_t>(heads));
        for (int64_t i = 0; i < group.forward.queries(); ++i) {
            const double weight = std::exp(group.forward.sink_of(i % heads) - static_cast<double>(group.shift[i]));
            if (weight != 0) sums[static_cast<size_t>(i % heads)] -= weight * static_cast<double>(group.delta[i]);
        }
    }

    void store() const {
        const int64_t heads = problem_.forward.heads_per_kv();
        for (int64_t head = 0; head < problem_.forward.heads_q; ++head) {
            double total = 0;
            for (int64_t b = 0; b < problem_.forward.batch; ++b)
                total += sums_[static_cast<size_t>(b * groups_.per_sequence() + head / heads)]
                              [static_cast<size_t>(head % heads)];
            pointers_.dsinks[head * problem_.dsinks.head] = static_cast<float>(total);
        }
    }

   private:
    const BackwardProblem& problem_;
    const BackwardPointers& pointers_;
    const BackwardGroups& groups_;
    std::vector<std::vector<double>> sums_;  // [groups, heads]
};

}  // namespace

void backward(const BackwardProblem& problem, const BackwardPointers& pointers) {
    const std::vector<Sequence> sequences = sequences_of(problem.forward, pointers.forward);
    const double cost = kTimesForward * most_cost_of(problem.forward, sequences);
    const bool is_small = cost < kSerialMultiplyAdds;
    const int threads = is_small ? std::min(thread_count_for(true), 1) : thread_count_for(false);
    const BackwardGroups groups(problem, pointers, sequences, problem.forward.heads_per_kv(), threads);
    if (problem.wants_dsinks) {
        SinkGradient sinks(problem, pointers, groups);
        parallel_for(groups.size(), threads, [&](int64_t i) { sinks.run(i); });
        sinks.store();
    }
    if (problem.wants_dq || problem.wants_dk || problem.wants_dv || problem.wants_dalibi) {
        KeyPass keys(problem, pointers, sequences, groups);
        parallel_for(keys.tasks(), threads, [&](int64_t i) { keys.run(i); });
        keys.store_dalibi();
    }
    if (problem.wants_dbias) differentiate_bias(problem, pointers, sequences, threads);
}

}  // namespace foveal::cpu
