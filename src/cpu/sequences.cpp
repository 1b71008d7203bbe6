#include "cpu/sequences.hpp"

#include <algorithm>
#include <string>

#include "cpu/ends.hpp"

namespace foveal::cpu {
namespace {

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
    check_ends(ends, batch, lengths.rows, names.cu_seqlens, names.total);
    if (lengths.seqused == nullptr) return;
    for (int64_t i = 0; i < batch; ++i) {
        const int32_t length = ends != nullptr ? ends[i + 1] - ends[i] : lengths.rows;
        const int32_t used = lengths.seqused[i * lengths.seqused_stride];
        if (used < 0 || used > length) refuse_entry(names.seqused, i, used, range_of(0, length));
    }
}

void check_query_offsets(const ForwardProblem& problem, const ForwardPointers& pointers) {
    if (!problem.has_query_offset) return;
    for (int64_t i = 0; i < problem.batch; ++i) {
        const int32_t off = pointers.query_offset[i * problem.query_offset_stride];
        if (off < -kMaxSequenceLength || off > kMaxSequenceLength)
            refuse_entry("query_offset", i, off, range_of(-kMaxSequenceLength, kMaxSequenceLength));
    }
}

// page_indptr ascends within page_indices, and a sequence's keys have pages there.
void check_lists_of_pages(const ForwardProblem& problem, const ForwardPointers& pointers) {
    if (!problem.lists_pages) return;
    const int32_t* const ends = pointers.page_indptr;
    if (ends[0] != 0) refuse_entry("page_indptr", 0, ends[0], "it must be 0");
    for (int64_t i = 0; i < problem.batch; ++i) {
        if (ends[i + 1] < ends[i] || ends[i + 1] > problem.page_entries)
            refuse_entry("page_indptr", i + 1, ends[i + 1], range_of(ends[i], problem.page_entries));
        const int64_t rows = std::min<int64_t>(int64_t{ends[i + 1] - ends[i]} * problem.page_size, problem.rows_k);
        const int32_t used = pointers.seqused_k[i * problem.seqused_k_stride];
        if (used > rows)
            refuse_entry("seqused_k", i, used, range_of(0, rows) + ", as page_indptr gives the sequence pages");
    }
}

// Of the keys that some query sees.
void check_pages(const ForwardProblem& problem, const ForwardPointers& pointers, int64_t index,
                 const Sequence& sequence) {
    if (sequence.len_q == 0 || problem.heads_q == 0) return;
    const Range seen = seen_keys(sequence.band(problem), sequence.len_q);
    if (seen.size() == 0) return;
    for (int32_t n = seen.begin / problem.page_size; n <= (seen.end - 1) / problem.page_size; ++n) {
        const int64_t page = sequence.pages[n];
        if (page < problem.pages) continue;
        const std::string needed = "the sequence's keys need it, and k has " + std::to_string(problem.pages) + " pages";
        const auto value = static_cast<int32_t>(sequence.pages[n]);
        if (problem.lists_pages) refuse_entry("page_indices", pointers.page_indptr[index] + n, value, needed);
        throw Error(FOVEAL_INVALID_ARGUMENT, "block_table[" + std::to_string(index) + ", " + std::to_string(n) +
                                                 "] is " + std::to_string(value) + "; " + needed);
    }
}

}  // namespace

std::vector<Sequence> sequences_of(const ForwardProblem& problem, const ForwardPointers& pointers) {
    const Lengths of_q = problem.lengths_q(pointers), of_k = problem.lengths_k(pointers);
    check_lengths(problem.batch, of_q, kNamesQ);
    check_lengths(problem.batch, of_k, kNamesK);
    check_query_offsets(problem, pointers);
    const bool in_pages = problem.keys == KeyForm::paged;
    if (in_pages) check_lists_of_pages(problem, pointers);
    const PageTable table = problem.page_table(pointers);
    std::vector<Sequence> sequences;
    sequences.reserve(static_cast<size_t>(problem.batch));
    for (int32_t i = 0; i < problem.batch; ++i) {
        const SequenceRows q = of_q.of(i), k = of_k.of(i);
        const int32_t off = problem.offset_of(i, q.length, k.length, pointers.query_offset);
        sequences.push_back({q.first, k.first, q.length, k.length, off, in_pages ? table.of(i) : nullptr});
        if (in_pages) check_pages(problem, pointers, i, sequences.back());
    }
    return sequences;
}

}  // namespace foveal::cpu
