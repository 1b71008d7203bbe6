#include "cpu/backward_bias.hpp"

#include <algorithm>

#include "cpu/backward_groups.hpp"
#include "cpu/head_group.hpp"
#include "cpu/threads.hpp"

namespace foveal::cpu {
namespace {

thread_local ThreadWorkspace workspace_of_thread;
thread_local ThreadWorkspace sums_of_thread;

// Of one dimension of the scores: how many pieces of it the bias has of its own; 1 if it is shared.
struct Dimension {
    bool own;
    int64_t pieces;  // sequences, heads, subtiles of queries or blocks of keys
    int64_t tasks() const { return own ? pieces : 1; }
    // The pieces that task `index` sums over.
    int64_t begin(int64_t index) const { return own ? index : 0; }
    int64_t end(int64_t index) const { return own ? index + 1 : pieces; }
};

class BiasGradient {
   public:
    BiasGradient(const BackwardProblem& problem, const BackwardPointers& pointers,
                 const std::vector<Sequence>& sequences, int threads)
        : problem_(problem),
          of_(problem.forward),
          dbias_(pointers.dbias),
          groups_(problem, pointers, sequences, 1, threads),
          sequences_{problem.dbias.batch != 0, of_.batch},
          heads_{problem.dbias.head != 0, of_.heads_q},
          subtiles_{problem.dbias.row != 0, subtiles_of(of_.rows_q)},
          blocks_{problem.dbias.key != 0, (of_.rows_k + kBlockKeys - 1) / kBlockKeys} {}

    int64_t tasks() const { return sequences_.tasks() * heads_.tasks() * subtiles_.tasks() * blocks_.tasks(); }

    void run(int64_t task) const {
        const int64_t block = task % blocks_.tasks(), subtile = task / blocks_.tasks() % subtiles_.tasks(),
                      head = task / blocks_.tasks() / subtiles_.tasks() % heads_.tasks(),
                      sequence = task / blocks_.tasks() / subtiles_.tasks() / heads_.tasks();
        float* const sums = sums_of_thread.reserve(kBlockKeys * subtile_queries());
        std::fill_n(sums, kBlockKeys * subtile_queries(), 0.0f);
        float* const workspace = workspace_of_thread.reserve(backward_workspace_floats(of_.head_dim, of_.head_dim_v));
        for (int64_t b = sequences_.begin(sequence); b < sequences_.end(sequence); ++b)
            for (int64_t h = heads_.begin(head); h < heads_.end(head); ++h)
                for (int64_t t = subtiles_.begin(subtile); t < subtiles_.end(subtile); ++t)
                    for (int64_t n = blocks_.begin(block); n < blocks_.end(block); ++n)
                        add(groups_.at(b, h), t, n, sums, workspace);
        store(sequence, head, subtile, block, sums);
    }

   private:
    static void add(const BackwardGroup& group, int64_t subtile, int64_t block, float* sums, float* workspace) {
        const auto first = static_cast<int32_t>(block * kBlockKeys);
        if (subtile >= subtiles_of(group.forward.queries()) || first >= group.forward.len_k) return;
        add_score_gradients(group, subtile, {first, std::min(first + kBlockKeys, group.forward.len_k)}, sums,
                            workspace);
    }

    // sums: [kBlockKeys, subtile_queries()], beyond the task's scores zeros.
    void store(int64_t sequence, int64_t head, int64_t subtile, int64_t block, const float* sums) const {
        const int64_t width = subtile_queries(), first_row = subtile * width, first_key = block * kBlockKeys;
        const int64_t rows = subtiles_.own ? std::min(width, of_.rows_q - first_row) : 1;
        const int64_t keys = blocks_.own ? std::min<int64_t>(kBlockKeys, of_.rows_k - first_key) : 1;
        for (int64_t i = 0; i < rows; ++i) {
            alignas(64) float row[kBlockKeys] = {};
            for (int64_t j = 0; j < keys; ++j) row[j] = sum(sums, i, j);
            const int64_t offset = offset_of(problem_.dbias, sequence, first_row + i, head) + first_key;
            store_floats(row, keys, problem_.dbias_dtype, advance(problem_.dbias_dtype, dbias_, offset));
        }
    }

    // Of the element that query i and key j have, over those that share it.
    float sum(const float* sums, int64_t i, int64_t j) const {
        const int64_t width = subtile_queries();
        double total = 0;
        for (int64_t key = j; key < (blocks_.own ? j + 1 : int64_t{kBlockKeys}); ++key)
            for (int64_t query = i; query < (subtiles_.own ? i + 1 : width); ++query)
                total += static_cast<double>(sums[key * width + query]);
        return static_cast<float>(total);
    }

    const BackwardProblem& problem_;
    const ForwardProblem& of_;
    void* const dbias_;
    const BackwardGroups groups_;
    const Dimension sequences_, heads_, subtiles_, blocks_;
};

}  // namespace

void differentiate_bias(const BackwardProblem& problem, const BackwardPointers& pointers,
                        const std::vector<Sequence>& sequences, int threads) {
    if (pointers.dbias == nullptr) return;
    const BiasGradient gradient(problem, pointers, sequences, threads);
    parallel_for(gradient.tasks(), threads, [&](int64_t task) { gradient.run(task); });
}

}  // namespace foveal::cpu
