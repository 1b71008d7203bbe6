#include "cpu/backward_groups.hpp"

#include <algorithm>

#include "cpu/head_group.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

// Subtiles that a task prepares.
constexpr int64_t kSubtilesPerTask = 16;

thread_local ThreadWorkspace workspace_of_thread;

BackwardGroup group_of(const BackwardProblem& problem, const BackwardPointers& pointers, const Sequence& sequence,
                       int64_t batch, int64_t head_q, int64_t heads) {
    const ForwardProblem& of = problem.forward;
    BackwardGroup group{};
    group.forward = head_group(of, pointers.forward, sequence, batch, head_q, heads);
    group.dout = advance(of.dtype, pointers.dout, offset_of(problem.dout, batch, sequence.first_q, head_q));
    group.dout_stride = problem.dout;
    if (problem.has_dlse) group.dlse = pointers.dlse + offset_of(problem.dlse, batch, sequence.first_q, head_q);
    group.dlse_stride = problem.dlse;
    return group;
}

}  // namespace

int64_t subtiles_of(int64_t queries) { return (queries + subtile_queries() - 1) / subtile_queries(); }

BackwardGroups::BackwardGroups(const BackwardProblem& problem, const BackwardPointers& pointers,
                               const std::vector<Sequence>& sequences, int64_t heads, int threads)
    : per_sequence_(problem.forward.heads_q / heads) {
    struct Task {
        int64_t group, begin, end;
    };
    std::vector<Task> tasks;
    int64_t rows = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
        const int64_t padded = subtiles_of(sequences[i].len_q * heads) * subtile_queries();
        for (int64_t n = 0; n < per_sequence_; ++n) {
            const int64_t step = kSubtilesPerTask * subtile_queries();
            for (int64_t begin = 0; begin < padded; begin += step)
                tasks.push_back({size(), begin, std::min(begin + step, padded)});
            groups_.push_back(group_of(problem, pointers, sequences[i], static_cast<int64_t>(i), n * heads, heads));
            rows += padded;
        }
    }
    float* next = rows_.reserve(2 * rows);
    for (BackwardGroup& group : groups_) {
        const int64_t padded = subtiles_of(group.forward.queries()) * subtile_queries();
        group.shift = next;
        group.delta = next + padded;
        next += 2 * padded;
    }
    const int64_t floats = backward_workspace_floats(problem.forward.head_dim, problem.forward.head_dim_v);
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t i) {
        const Task& task = tasks[static_cast<size_t>(i)];
        prepare_rows(of(task.group), task.begin, task.end, workspace_of_thread.reserve(floats));
    });
}

}  // namespace foveal::cpu
