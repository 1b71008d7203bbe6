#include "cpu/backward_groups.hpp"

#include <algorithm>

#include "cpu/head_group.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

// Subtiles that a task prepares.
constexpr int64_t kSubtilesPerTask = 16;

thread_local ThreadWorkspace workspace_of_thread;

int64_t padded(int64_t queries) { return subtiles_of(queries) * subtile_queries(); }

}  // namespace

int64_t subtiles_of(int64_t queries) { return (queries + subtile_queries() - 1) / subtile_queries(); }

BackwardGroups::BackwardGroups(const BackwardProblem& problem, const BackwardPointers& pointers,
                               const std::vector<Sequence>& sequences, int64_t heads, int threads)
    : problem_(problem), pointers_(pointers), sequences_(sequences), heads_(heads) {
    int64_t rows = 0;
    first_row_.reserve(sequences.size());
    for (const Sequence& sequence : sequences) {
        first_row_.push_back(rows);
        rows += padded(sequence.len_q * heads) * per_sequence();
    }
    rows_.reserve(2 * rows);
    prepare(threads);
}

BackwardGroup BackwardGroups::at(int64_t sequence, int64_t index) const {
    const ForwardProblem& of = problem_.forward;
    const Sequence& rows = sequences_[static_cast<size_t>(sequence)];
    const int64_t head_q = index * heads_, queries = padded(rows.len_q * heads_);
    BackwardGroup group{};
    group.forward = head_group(of, pointers_.forward, rows, sequence, head_q, heads_);
    group.dout = advance(of.dtype, pointers_.dout, offset_of(problem_.dout, sequence, rows.first_q, head_q));
    group.dout_stride = problem_.dout;
    if (problem_.has_dlse) group.dlse = pointers_.dlse + offset_of(problem_.dlse, sequence, rows.first_q, head_q);
    group.dlse_stride = problem_.dlse;
    group.shift = rows_.memory() + 2 * (first_row_[static_cast<size_t>(sequence)] + index * queries);
    group.delta = group.shift + queries;
    return group;
}

void BackwardGroups::prepare(int threads) const {
    struct Task {
        int64_t sequence, begin, end;
    };
    std::vector<Task> tasks;
    const int64_t step = kSubtilesPerTask * subtile_queries();
    for (size_t i = 0; i < sequences_.size(); ++i) {
        const int64_t queries = padded(sequences_[i].len_q * heads_);
        for (int64_t begin = 0; begin < queries; begin += step)
            tasks.push_back({static_cast<int64_t>(i), begin, std::min(begin + step, queries)});
    }
    const int64_t floats = backward_workspace_floats(problem_.forward.head_dim, problem_.forward.head_dim_v);
    parallel_for(static_cast<int64_t>(tasks.size()) * per_sequence(), threads, [&](int64_t i) {
        const Task& task = tasks[static_cast<size_t>(i / per_sequence())];
        prepare_rows(at(task.sequence, i % per_sequence()), task.begin, task.end, workspace_of_thread.reserve(floats));
    });
}

}  // namespace foveal::cpu
