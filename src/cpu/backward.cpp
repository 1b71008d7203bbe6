#include "cpu/backward.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/backward_bias.hpp"
#include "cpu/backward_groups.hpp"
#include "cpu/backward_parts.hpp"
#include "cpu/schedule.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

// Multiply-adds below which waking another thread costs more than it helps.
constexpr double kSerialMultiplyAdds = 1e6;
// Of the products that a forward pass makes, and that a backward pass does.
constexpr double kTimesForward = 2.5;

// dsinks: of each head, -sum over rows of exp(sink - lse) * D.
class SinkGradient {
   public:
    SinkGradient(const BackwardProblem& problem, const BackwardPointers& pointers, const BackwardGroups& groups)
        : problem_(problem),
          pointers_(pointers),
          groups_(groups),
          sums_(static_cast<size_t>(problem.forward.batch * problem.forward.heads_q)) {}

    int64_t tasks() const { return groups_.size(); }

    void run(int64_t index) {
        const BackwardGroup group = groups_.at(index / groups_.per_sequence(), index % groups_.per_sequence());
        const int64_t heads = group.forward.heads;
        double* const sums = sums_.data() + index * heads;
        for (int64_t i = 0; i < group.forward.queries(); ++i) {
            const double weight = std::exp(group.forward.sink_of(i % heads) - static_cast<double>(group.shift[i]));
            if (weight != 0) sums[i % heads] -= weight * static_cast<double>(group.delta[i]);
        }
    }

    void store() const {
        for (int64_t head = 0; head < problem_.forward.heads_q; ++head) {
            double total = 0;
            for (int64_t b = 0; b < problem_.forward.batch; ++b)
                total += sums_[static_cast<size_t>(b * problem_.forward.heads_q + head)];
            pointers_.dsinks[head * problem_.dsinks.head] = static_cast<float>(total);
        }
    }

   private:
    const BackwardProblem& problem_;
    const BackwardPointers& pointers_;
    const BackwardGroups& groups_;
    std::vector<double> sums_;  // [b, h_q]
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
        parallel_for(sinks.tasks(), threads, [&](int64_t i) { sinks.run(i); });
        sinks.store();
    }
    if (problem.wants_dq || problem.wants_dk || problem.wants_dv || problem.wants_dalibi)
        differentiate_parts(problem, pointers, sequences, groups, threads);
    if (problem.wants_dbias) differentiate_bias(problem, pointers, sequences, threads);
}

}  // namespace foveal::cpu
