#include "cpu/backward_parts.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>

#include "cpu/head_group.hpp"
#include "cpu/sum_order.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

thread_local ThreadWorkspace workspace_of_thread;

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

// What the parts of a group share while they are computed.
struct SharedByParts {
    SumOrder order;
    std::atomic<int32_t> parts_left;
    ThreadWorkspace dq;  // zeros at first

    SharedByParts(std::vector<Range> visits, int64_t dq_floats, const std::atomic<bool>& given_up)
        : order(std::move(visits), given_up), parts_left(order.parts()) {
        std::fill_n(dq.reserve(dq_floats), dq_floats, 0.0f);
    }
};

class PartsGradient {
   public:
    PartsGradient(const BackwardProblem& problem, const BackwardPointers& pointers,
                  const std::vector<Sequence>& sequences, const BackwardGroups& groups)
        : problem_(problem),
          of_(problem.forward),
          pointers_(pointers),
          sequences_(sequences),
          groups_(groups),
          part_keys_(backward_part_keys(of_.head_dim, of_.head_dim_v)),
          shared_(static_cast<size_t>(groups.size())) {
        int64_t tasks = 0;
        for (size_t i = 0; i < sequences.size(); ++i) {
            first_task_.push_back(tasks);
            tasks += parts_of(i) * groups.per_sequence();
        }
        first_task_.push_back(tasks);
        if (problem.wants_dalibi) dalibi_.resize(static_cast<size_t>(tasks * of_.heads_per_kv()));
    }

    // Sequence by sequence, head by head, parts in ascending order, as SumOrder asks for.
    int64_t tasks() const { return first_task_.back(); }

    void run(int64_t task) try {
        const auto behind = std::upper_bound(first_task_.begin(), first_task_.end(), task);
        const int64_t sequence = behind - first_task_.begin() - 1;
        const int64_t in_sequence = task - first_task_[static_cast<size_t>(sequence)];
        const int32_t parts = parts_of(static_cast<size_t>(sequence));
        const int64_t head_k = in_sequence / parts;
        const auto part = static_cast<int32_t>(in_sequence % parts);
        BackwardGroup group = groups_.at(sequence, head_k);
        SharedByParts& shared = shared_of(sequence, head_k, group.forward, parts);
        ask(group, shared, sequence, head_k, task);
        compute(group, shared, part);
        if (--shared.parts_left > 0) return;
        if (problem_.wants_dq) store(group, sequence, head_k);
        release(sequence, head_k);
    } catch (...) {
        given_up_ = true;
        throw;
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
    // Of a K/V head; of a sequence without keys one, an empty one.
    int32_t parts_of(size_t sequence) const {
        return std::max((sequences_[sequence].len_k + part_keys_ - 1) / part_keys_, 1);
    }

    size_t index_of(int64_t sequence, int64_t head_k) const {
        return static_cast<size_t>(sequence * groups_.per_sequence() + head_k);
    }

    // Made by the first part that asks.
    SharedByParts& shared_of(int64_t sequence, int64_t head_k, const HeadGroup& group, int32_t parts) {
        const std::lock_guard lock(mutex_);
        std::unique_ptr<SharedByParts>& shared = shared_[index_of(sequence, head_k)];
        const int64_t dq_floats = subtiles_of(group.queries()) * subtile_queries() * dq_rows(of_.head_dim);
        if (!shared)
            shared = std::make_unique<SharedByParts>(visits_of(group, part_keys_, parts),
                                                     problem_.wants_dq ? dq_floats : 0, given_up_);
        return *shared;
    }

    void release(int64_t sequence, int64_t head_k) {
        const std::lock_guard lock(mutex_);
        shared_[index_of(sequence, head_k)].reset();
    }

    void ask(BackwardGroup& group, SharedByParts& shared, int64_t sequence, int64_t head_k, int64_t task) {
        const int64_t first_k = sequences_[static_cast<size_t>(sequence)].first_k;
        const auto keys_of = [&](DType dtype, void* tensor, const Strides& stride) {
            return advance(dtype, tensor, offset_of(stride, sequence, first_k, head_k));
        };
        if (problem_.wants_dq) group.dq = shared.dq.memory();
        if (problem_.wants_dk) group.dk = keys_of(problem_.dk_dtype, pointers_.dk, problem_.dk);
        if (problem_.wants_dv) group.dv = keys_of(problem_.dv_dtype, pointers_.dv, problem_.dv);
        group.dk_row = problem_.dk.row;
        group.dv_row = problem_.dv.row;
        group.dk_dtype = problem_.dk_dtype;
        group.dv_dtype = problem_.dv_dtype;
        if (problem_.wants_dalibi) group.dalibi = dalibi_.data() + task * group.forward.heads;
    }

    void compute(const BackwardGroup& group, SharedByParts& shared, int32_t part) const {
        const Range keys{part * part_keys_, std::min((part + 1) * part_keys_, group.forward.len_k)};
        compute_gradients(group, keys, shared.order, part, workspace());
    }

    void store(const BackwardGroup& group, int64_t sequence, int64_t head_k) const {
        const int64_t first_q = sequences_[static_cast<size_t>(sequence)].first_q;
        const int64_t offset = offset_of(problem_.dq, sequence, first_q, head_k * group.forward.heads);
        store_dq(group, 0, group.forward.queries(), problem_.dq_dtype, advance(problem_.dq_dtype, pointers_.dq, offset),
                 problem_.dq, workspace());
    }

    float* workspace() const {
        return workspace_of_thread.reserve(backward_workspace_floats(of_.head_dim, of_.head_dim_v));
    }

    // Over the parts, in their order.
    double dalibi_of(int64_t sequence, int64_t head) const {
        const int64_t heads = of_.heads_per_kv(), parts = parts_of(static_cast<size_t>(sequence));
        const int64_t first = first_task_[static_cast<size_t>(sequence)] + head / heads * parts;
        double total = 0;
        for (int64_t task = first; task < first + parts; ++task)
            total += dalibi_[static_cast<size_t>(task * heads + head % heads)];
        return total;
    }

    void store_slope(int64_t sequence, int64_t head, double value) const {
        pointers_.dalibi_slopes[offset_of(problem_.dalibi, sequence, 0, head)] = static_cast<float>(value);
    }

    const BackwardProblem& problem_;
    const ForwardProblem& of_;
    const BackwardPointers& pointers_;
    const std::vector<Sequence>& sequences_;
    const BackwardGroups& groups_;
    const int32_t part_keys_;
    std::vector<int64_t> first_task_;  // [sequences + 1]
    std::vector<double> dalibi_;       // [tasks, heads_per_kv]
    std::atomic<bool> given_up_{false};
    std::mutex mutex_;
    std::vector<std::unique_ptr<SharedByParts>> shared_;  // [groups], of those that are being computed
};

}  // namespace

void differentiate_parts(const BackwardProblem& problem, const BackwardPointers& pointers,
                         const std::vector<Sequence>& sequences, const BackwardGroups& groups, int threads) {
    PartsGradient gradient(problem, pointers, sequences, groups);
    parallel_for(gradient.tasks(), threads, [&](int64_t task) { gradient.run(task); });
    gradient.store_dalibi();
}

}  // namespace foveal::cpu
