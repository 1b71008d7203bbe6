#include "cpu/forward.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/head_group.hpp"
#include "cpu/part.hpp"
#include "cpu/schedule.hpp"
#include "cpu/sequences.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/thread_workspace.hpp"
#include "cpu/threads.hpp"
#include "cpu/tile.hpp"

namespace foveal::cpu {
namespace {

// Multiply-adds below which waking another thread costs more than it helps: about 20 us of one core.
constexpr double kSerialMultiplyAdds = 1e6;

thread_local ThreadWorkspace thread_workspace;
thread_local ThreadWorkspace parts_of_caller;

// Computes tasks. Whoever ends the last of a sequence's parts, of one K/V head, merges them.
class Execution {
   public:
    Execution(const ForwardProblem& problem, const ForwardPointers& pointers, const std::vector<Sequence>& sequences,
              const Schedule& schedule)
        : problem_(problem),
          pointers_(pointers),
          sequences_(sequences),
          schedule_(schedule),
          parts_(parts_of_caller.reserve(schedule.part_floats)),
          parts_left_(schedule.part_floats > 0 ? sequences.size() * static_cast<size_t>(problem.heads_k) : 0) {
        for (size_t i = 0; i < parts_left_.size(); ++i)
            parts_left_[i] = schedule.part_tasks[i / static_cast<size_t>(problem.heads_k)];
        for (const Sequence& s : sequences)
            if (s.len_q > 0)
                few_queries_ = std::max(few_queries_, std::min(s.len_q * problem.heads_per_kv(), most_few_queries()));
    }

    void run(const Task& task, int64_t head_k) {
        const auto index = static_cast<size_t>(task.sequence);
        const Split& split = schedule_.splits[index];
        const int64_t heads = problem_.heads_per_kv();
        const HeadGroup group =
            head_group(problem_, pointers_, sequences_[index], task.sequence, head_k * heads, heads);
        float* const workspace = thread_workspace.reserve(workspace_floats_of(split));
        if (split.parts == 0) return compute_tile(group, task.begin, task.end, workspace);
        float* const parts = parts_ + split.first_float + head_k * split.floats;
        const Part part = part_at(parts + task.part * (split.floats / split.parts), group.queries(), group.head_dim_v);
        const Range keys = split.keys_of(task.part);
        if (split.few_queries)
            attend_few_queries(group, keys, part, workspace);
        else
            compute_tile_of_part(group, task.begin, task.end, keys, part, workspace);
        if (--parts_left_[index * static_cast<size_t>(problem_.heads_k) + static_cast<size_t>(head_k)] == 0)
            merge_parts(group, parts, split.parts);
    }

   private:
    int64_t workspace_floats_of(const Split& split) const {
        return split.few_queries ? few_queries_workspace_floats(few_queries_, problem_.head_dim, dequantised_channels())
                                 : workspace_floats(problem_.head_dim, problem_.head_dim_v, schedule_.tile_queries);
    }

    int64_t dequantised_channels() const {
        return problem_.keys_dtype == DType::e4m3 ? std::max(problem_.head_dim, problem_.head_dim_v) : 0;
    }

    const ForwardProblem& problem_;
    const ForwardPointers& pointers_;
    const std::vector<Sequence>& sequences_;
    const Schedule& schedule_;
    float* parts_;
    std::vector<std::atomic<int32_t>> parts_left_;  // [sequences, h_k]
    int64_t few_queries_ = 0;                       // of any sequence
};

}  // namespace

void forward(const ForwardProblem& problem, const ForwardPointers& pointers) {
    const std::vector<Sequence> sequences = sequences_of(problem, pointers);
    if (problem.heads_q == 0) return;
    const int threads = thread_count_for(most_cost_of(problem, sequences) < kSerialMultiplyAdds);
    const Schedule schedule = schedule_of(problem, sequences, threads);
    if (schedule.tasks.empty()) return;
    Execution execution(problem, pointers, sequences, schedule);
    parallel_for(static_cast<int64_t>(schedule.tasks.size()) * problem.heads_k,
                 schedule.cost < kSerialMultiplyAdds ? 1 : threads, [&](int64_t i) {
                     execution.run(schedule.tasks[static_cast<size_t>(i / problem.heads_k)], i % problem.heads_k);
                 });
}

}  // namespace foveal::cpu
