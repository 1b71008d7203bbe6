#include "cpu/forward.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/threads.hpp"
#include "cpu/tile.hpp"

namespace foveal::cpu {
namespace {

// Queries of a tile at most, so that its transposed queries and outputs stay in half an L2 cache of 1 MiB ...
constexpr int64_t kTileBytes = 512 << 10;
// ... and at most as many as it takes to hide the packing of K and V.
constexpr int64_t kMaxTileQueries = 768;
// Tiles for each thread that the work is cut into, if the sequences allow it: the last ones to finish differ by one.
constexpr int64_t kTilesPerThread = 8;
// Multiply-adds below which waking another thread costs more than it helps: about 20 us of one core.
constexpr double kSerialMultiplyAdds = 1e6;

// ---- sequences ------------------------------------------------------------------------------------------------------

[[noreturn]] void refuse(const char* name, int64_t index, int64_t value, const std::string& requirement) {
    throw Error(FOVEAL_INVALID_ARGUMENT,
                std::string(name) + "[" + std::to_string(index) + "] is " + std::to_string(value) + "; " + requirement);
}

// One sequence of the batch: where its rows begin and how many take part.
struct Sequence {
    int64_t first_q;
    int64_t first_k;
    int32_t len_q;
    int32_t len_k;
};

std::string range(int64_t least, int64_t most) {
    return "it must lie in [" + std::to_string(least) + ", " + std::to_string(most) + "]";
}

// What validated arguments call one side's lengths, and the tensor whose rows they count.
struct LengthNames {
    const char* cu_seqlens;
    const char* seqused;
    const char* total;
};
constexpr LengthNames kNamesQ{"cu_seqlens_q", "seqused_q", "q.shape[0]"};
constexpr LengthNames kNamesK{"cu_seqlens_k", "seqused_k", "k.shape[0]"};

// The kernels trust the lengths; here they can be checked before anything is written.
void check_lengths(int64_t batch, const Lengths& lengths, const LengthNames& names) {
    const int32_t* const ends = lengths.cu_seqlens;
    if (ends != nullptr) {
        if (ends[0] != 0) refuse(names.cu_seqlens, 0, ends[0], "it must be 0");
        for (int64_t i = 1; i <= batch; ++i)
            if (ends[i] < ends[i - 1] || ends[i] > lengths.rows)
                refuse(names.cu_seqlens, i, ends[i], range(ends[i - 1], lengths.rows));
        if (ends[batch] != lengths.rows)
            refuse(names.cu_seqlens, batch, ends[batch],
                   "the last must be " + std::string(names.total) + ", " + std::to_string(lengths.rows));
    }
    if (lengths.seqused == nullptr) return;
    for (int64_t i = 0; i < batch; ++i) {
        const int32_t length = ends != nullptr ? ends[i + 1] - ends[i] : lengths.rows;
        const int32_t used = lengths.seqused[i * lengths.seqused_stride];
        if (used < 0 || used > length) refuse(names.seqused, i, used, range(0, length));
    }
}

std::vector<Sequence> sequences_of(const ForwardProblem& problem, const ForwardPointers& pointers) {
    const Lengths of_q = problem.lengths_q(pointers), of_k = problem.lengths_k(pointers);
    check_lengths(problem.batch, of_q, kNamesQ);
    check_lengths(problem.batch, of_k, kNamesK);
    std::vector<Sequence> sequences;
    sequences.reserve(static_cast<size_t>(problem.batch));
    for (int32_t i = 0; i < problem.batch; ++i) {
        const SequenceRows q = of_q.of(i), k = of_k.of(i);
        sequences.push_back({q.first, k.first, q.length, k.length});
    }
    return sequences;
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// A run of one sequence's queries; it stands for as many tiles as there are K/V heads.
struct QueryRange {
    int64_t sequence;
    int64_t begin;
    int64_t end;
    double multiply_adds;  // of one K/V head
};

double multiply_adds_of(const ForwardProblem& problem, const Sequence& sequence, int64_t begin, int64_t end) {
    const Band band = band_of(problem.window(), sequence.len_q, sequence.len_k);
    const int64_t step = subtile_queries();
    double pairs = 0;
    for (int64_t first = begin; first < end; first += step) {
        const int64_t last = std::min(first + step, end) - 1;
        const Range keys{visible_keys(band, static_cast<int32_t>(first / problem.heads_per_kv())).begin,
                         visible_keys(band, static_cast<int32_t>(last / problem.heads_per_kv())).end};
        // One key's worth for what a query costs without any.
        pairs += static_cast<double>(last + 1 - first) * (keys.size() + 1.0);
    }
    return pairs * static_cast<double>(problem.head_dim + problem.head_dim_v);
}

// Smaller tiles than the cache allows if the threads would otherwise lack work. No result depends on it.
int64_t tile_queries_of(const ForwardProblem& problem, const std::vector<Sequence>& sequences, int threads) {
    const int64_t query_bytes = (problem.head_dim + problem.head_dim_v) * static_cast<int64_t>(sizeof(float));
    int64_t subtiles = 0;
    for (const Sequence& s : sequences) {
        subtiles += (s.len_q * problem.heads_per_kv() + subtile_queries() - 1) / subtile_queries() * problem.heads_k;
    }
    const int64_t fit_cache = std::min(kTileBytes / query_bytes, kMaxTileQueries) / subtile_queries();
    const int64_t fit_threads = subtiles / (threads * kTilesPerThread);
    return std::max<int64_t>(std::min(fit_cache, fit_threads), 1) * subtile_queries();
}

// Longest first: the last tile to start is a short one.
std::vector<QueryRange> schedule(const ForwardProblem& problem, const std::vector<Sequence>& sequences,
                                 int64_t tile_queries) {
    std::vector<QueryRange> ranges;
    for (size_t i = 0; i < sequences.size(); ++i) {
        const int64_t queries = sequences[i].len_q * problem.heads_per_kv();
        for (int64_t begin = 0; begin < queries; begin += tile_queries) {
            const int64_t end = std::min(begin + tile_queries, queries);
            ranges.push_back(
                {static_cast<int64_t>(i), begin, end, multiply_adds_of(problem, sequences[i], begin, end)});
        }
    }
    std::stable_sort(ranges.begin(), ranges.end(),
                     [](const QueryRange& a, const QueryRange& b) { return a.multiply_adds > b.multiply_adds; });
    return ranges;
}

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
    group.k = advance(problem.dtype, pointers.k, offset_of(problem.k, batch, sequence.first_k, head_k));
    group.v = advance(problem.dtype, pointers.v, offset_of(problem.v, batch, sequence.first_k, head_k));
    group.out = advance(problem.dtype, pointers.out, offset_of(problem.out, batch, sequence.first_q, head_q));
    group.lse = problem.wants_lse ? pointers.lse + offset_of(problem.lse, batch, sequence.first_q, head_q) : nullptr;
    group.q_stride = problem.q;
    group.out_stride = problem.out;
    group.lse_stride = problem.lse;
    group.k_row_stride = problem.k.row;
    group.v_row_stride = problem.v.row;
    group.len_q = sequence.len_q;
    group.len_k = sequence.len_k;
    group.heads = problem.heads_per_kv();
    group.head_dim = problem.head_dim;
    group.head_dim_v = problem.head_dim_v;
    group.scale = problem.scale;
    group.band = band_of(problem.window(), sequence.len_q, sequence.len_k);
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

}  // namespace

void forward(const ForwardProblem& problem, const ForwardPointers& pointers) {
    const std::vector<Sequence> sequences = sequences_of(problem, pointers);
    if (problem.heads_q == 0) return;
    const int threads = thread_count();
    const int64_t tile_queries = tile_queries_of(problem, sequences, threads);
    const std::vector<QueryRange> ranges = schedule(problem, sequences, tile_queries);
    if (ranges.empty()) return;

    double multiply_adds = 0;
    for (const QueryRange& range : ranges) multiply_adds += range.multiply_adds * static_cast<double>(problem.heads_k);
    const int64_t floats = workspace_floats(problem.head_dim, problem.head_dim_v, tile_queries);
    parallel_for(static_cast<int64_t>(ranges.size()) * problem.heads_k,
                 multiply_adds < kSerialMultiplyAdds ? 1 : threads, [&](int64_t i) {
                     const QueryRange& range = ranges[static_cast<size_t>(i / problem.heads_k)];
                     const Sequence& sequence = sequences[static_cast<size_t>(range.sequence)];
                     const HeadGroup group =
                         head_group(problem, pointers, sequence, range.sequence, i % problem.heads_k);
                     compute_tile(group, range.begin, range.end, thread_workspace.reserve(floats));
                 });
}

}  // namespace foveal::cpu
