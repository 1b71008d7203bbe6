#include "cpu/forward.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "cpu/part.hpp"
#include "cpu/schedule.hpp"
#include "cpu/sequences.hpp"
#include "cpu/thread_count.hpp"
#include "cpu/threads.hpp"
#include "cpu/tile.hpp"

namespace foveal::cpu {
namespace {

// Multiply-adds below which waking another thread costs more than it helps: about 20 us of one core.
constexpr double kSerialMultiplyAdds = 1e6;

// ---- execution ------------------------------------------------------------------------------------------------------

const void* advance(DType dtype, const void* tensor, int64_t elements) {
    return static_cast<const std::byte*>(tensor) + elements * bytes_of(dtype);
}

void* advance(DType dtype, void* tensor, int64_t elements) {
    return static_cast<std::byte*>(tensor) + elements * bytes_of(dtype);
}

int64_t offset_of(const Strides& stride, int64_t batch, int64_t row, int64_t head) {
    return batch * stride.batch + row * stride.row + head * stride.head;
}

// Of one head. The batch strides are those of pages, if the keys are in pages.
KeyRows key_rows(const ForwardProblem& problem, const void* tensor, const Strides& stride, const Sequence& sequence,
                 int64_t batch, int64_t head) {
    const bool in_pages = sequence.pages != nullptr;
    const int64_t element = bytes_of(problem.dtype);
    const int64_t first = offset_of(stride, in_pages ? 0 : batch, sequence.first_k, head);
    KeyRows rows{static_cast<const std::byte*>(tensor) + first * element, stride.row * element};
    if (in_pages) {
        rows.pages = sequence.pages;
        rows.page_size = problem.page_size;
        rows.page_stride_bytes = stride.batch * element;
    }
    return rows;
}

void set_tree(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers,
              const Sequence& sequence, int64_t batch) {
    constexpr int64_t kBitsOfWord = 32;
    group.tree = problem.has_tree ? pointers.tree_mask + offset_of(problem.tree, batch, sequence.first_q, 0) : nullptr;
    group.tree_row_stride = problem.tree.row;
    group.tree_first_key = sequence.len_k - sequence.len_q;
    group.tree_keys = static_cast<int32_t>(std::min<int64_t>(sequence.len_q, problem.tree_words * kBitsOfWord));
}

void set_score_options(HeadGroup& group, const ForwardProblem& problem, const ForwardPointers& pointers, int64_t batch,
                       int64_t head_q) {
    group.softcap = problem.softcap;
    group.alibi_slopes =
        problem.has_alibi ? pointers.alibi_slopes + offset_of(problem.alibi, batch, 0, head_q) : nullptr;
    group.alibi_stride = problem.alibi.head;
    group.sinks = problem.has_sinks ? pointers.sinks + offset_of(problem.sinks, batch, 0, head_q) : nullptr;
    group.sinks_stride = problem.sinks.head;
    group.bias_dtype = problem.bias_dtype;
    group.bias = problem.has_bias
                     ? advance(problem.bias_dtype, pointers.bias, offset_of(problem.bias, batch, 0, head_q))
                     : nullptr;
    group.bias_stride = problem.bias;
    group.mask = problem.has_mask ? pointers.mask + offset_of(problem.mask, batch, 0, head_q) : nullptr;
    group.mask_stride = problem.mask;
}

HeadGroup head_group(const ForwardProblem& problem, const ForwardPointers& pointers, const Sequence& sequence,
                     int64_t batch, int64_t head_k) {
    const int64_t head_q = head_k * problem.heads_per_kv();
    HeadGroup group;
    group.dtype = problem.dtype;
    group.q = advance(problem.dtype, pointers.q, offset_of(problem.q, batch, sequence.first_q, head_q));
    group.k = key_rows(problem, pointers.k, problem.k, sequence, batch, head_k);
    group.v = key_rows(problem, pointers.v, problem.v, sequence, batch, head_k);
    group.out = advance(problem.dtype, pointers.out, offset_of(problem.out, batch, sequence.first_q, head_q));
    group.lse = problem.wants_lse ? pointers.lse + offset_of(problem.lse, batch, sequence.first_q, head_q) : nullptr;
    group.q_stride = problem.q;
    group.out_stride = problem.out;
    group.lse_stride = problem.lse;
    group.len_q = sequence.len_q;
    group.len_k = sequence.len_k;
    group.heads = problem.heads_per_kv();
    group.head_dim = problem.head_dim;
    group.head_dim_v = problem.head_dim_v;
    group.scale = problem.scale;
    group.band = sequence.band(problem);
    set_tree(group, problem, pointers, sequence, batch);
    set_score_options(group, problem, pointers, batch, head_q);
    return group;
}

// Memory that a thread keeps from call to call: fresh pages would cost as much as a short sequence's work.
class ThreadWorkspace {
   public:
    float* reserve(int64_t floats) {
        if (floats > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(new (kAlignment) float[static_cast<size_t>(floats)]);
            size_ = floats;
        }
        return memory_.get();
    }

   private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(float* memory) const { operator delete[](memory, kAlignment); }
    };
    std::unique_ptr<float[], Free> memory_;
    int64_t size_ = 0;
};

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
        const HeadGroup group = head_group(problem_, pointers_, sequences_[index], task.sequence, head_k);
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
        return split.few_queries ? few_queries_workspace_floats(few_queries_, problem_.head_dim)
                                 : workspace_floats(problem_.head_dim, problem_.head_dim_v, schedule_.tile_queries);
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
