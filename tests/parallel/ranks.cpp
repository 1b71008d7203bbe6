#include "tests/parallel/ranks.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>

namespace foveal_testing {
namespace {

int64_t element_bytes(foveal_dtype dtype) {
    return dtype == FOVEAL_BOOL ? 1 : dtype == FOVEAL_F32 || dtype == FOVEAL_I32 ? 4 : 2;
}

// A tensor in memory of its own, without gaps, all NaN (0xFF).
struct Owned {
    std::vector<std::byte> bytes;
    foveal_tensor view{};

    Owned() = default;
    Owned(const foveal_tensor& like, int dimension, int64_t rows) : view(like) {
        view.shape[dimension] = rows;
        int64_t elements = 1, stride = 1;
        for (int i = view.rank - 1; i >= 0; --i) {
            view.stride[i] = stride;
            stride *= std::max<int64_t>(view.shape[i], 1);
            elements *= view.shape[i];
        }
        bytes.assign(static_cast<size_t>(elements * element_bytes(view.dtype)), std::byte{0xFF});
        view.data = bytes.data();
    }
};

// Copies rows of `dimension`: [from_row, from_row + rows) to [to_row, to_row + rows).
void copy_rows(const foveal_tensor& from, int64_t from_row, const foveal_tensor& to, int64_t to_row, int64_t rows,
               int dimension) {
    const int64_t size = element_bytes(from.dtype);
    int64_t outer[FOVEAL_MAX_RANK] = {1, 1, 1, 1};
    for (int i = 0; i < from.rank; ++i) outer[i] = i == dimension ? rows : from.shape[i];
    int64_t at[FOVEAL_MAX_RANK];
    for (at[0] = 0; at[0] < outer[0]; ++at[0])
        for (at[1] = 0; at[1] < outer[1]; ++at[1])
            for (at[2] = 0; at[2] < outer[2]; ++at[2])
                for (at[3] = 0; at[3] < outer[3]; ++at[3]) {
                    int64_t source = 0, target = 0;
                    for (int i = 0; i < from.rank; ++i) {
                        source += (at[i] + (i == dimension ? from_row : 0)) * from.stride[i];
                        target += (at[i] + (i == dimension ? to_row : 0)) * to.stride[i];
                    }
                    std::memcpy(static_cast<std::byte*>(to.data) + target * size,
                                static_cast<const std::byte*>(from.data) + source * size, static_cast<size_t>(size));
                }
}

// Rows of one rank, one span after the other: where each span lies in the whole tensor and in the rank's.
struct SpanRows {
    int64_t whole, local, rows;
};
std::vector<SpanRows> rows_of_rank(const std::vector<foveal_span>& spans, int32_t rank,
                                   const std::vector<int64_t>& lengths) {
    std::vector<SpanRows> rows;
    int64_t local = 0;
    for (const foveal_span& span : spans) {
        if (span.rank != rank) continue;
        int64_t before = 0;
        for (int64_t i = 0; i < span.sequence; ++i) before += lengths[static_cast<size_t>(i)];
        rows.push_back({before + span.position, local, span.rows});
        local += span.rows;
    }
    return rows;
}

int64_t count_of(const std::vector<SpanRows>& rows) { return rows.empty() ? 0 : rows.back().local + rows.back().rows; }

Owned gathered(const foveal_tensor& whole, const std::vector<SpanRows>& rows, int dimension) {
    if (whole.rank == 0) return {};
    if (dimension < 0 || whole.shape[dimension] == 1) {  // of a bias or mask: shared by all rows
        Owned all(whole, whole.rank - 1, whole.shape[whole.rank - 1]);
        copy_rows(whole, 0, all.view, 0, whole.shape[0], 0);
        return all;
    }
    Owned local(whole, dimension, count_of(rows));
    for (const SpanRows& span : rows) copy_rows(whole, span.whole, local.view, span.local, span.rows, dimension);
    return local;
}

// One rank's tensors and its arguments.
struct Rank {
    std::vector<SpanRows> rows_q;
    Owned q, k, v, out, lse, bias, mask;
    std::unique_ptr<std::byte, decltype(&std::free)> workspace{nullptr, &std::free};
    foveal_forward_args forward{};
    foveal_parallel_args args{};
};

void fill_rank(Rank& of, int32_t rank, const foveal_forward_args& whole, const Ranks& ranks) {
    const Lengths lengths = lengths_of(whole);
    const int row = whole.q.rank == 4 ? 1 : 0, row_k = whole.k.rank == 4 ? 1 : 0;
    of.rows_q = rows_of_rank(ranks.spans_q, rank, lengths.q);
    const std::vector<SpanRows> rows_k = rows_of_rank(ranks.spans_k, rank, lengths.k);
    of.q = gathered(whole.q, of.rows_q, row);
    of.k = gathered(whole.k, rows_k, row_k);
    of.v = gathered(whole.v, rows_k, row_k);
    of.out = Owned(whole.out, row, count_of(of.rows_q));
    if (whole.lse.rank != 0) of.lse = Owned(whole.lse, whole.lse.rank - 1, count_of(of.rows_q));
    of.bias = gathered(whole.bias, of.rows_q, whole.bias.rank - 2);
    of.mask = gathered(whole.mask, of.rows_q, whole.mask.rank - 2);
    of.forward = whole;
    of.forward.cu_seqlens_q = of.forward.cu_seqlens_k = {};
    of.forward.q = of.q.view;
    of.forward.k = of.k.view;
    of.forward.v = of.v.view;
    of.forward.out = of.out.view;
    of.forward.lse = of.lse.view;
    of.forward.bias = of.bias.view;
    of.forward.mask = of.mask.view;
    foveal_parallel_args_init(&of.args);
    of.args.method = ranks.method;
    of.args.rank = rank;
    of.args.ranks = ranks.count;
    of.args.head_ranks = ranks.head_ranks;
    of.args.forward = &of.forward;
    of.args.spans_q = ranks.spans_q.data();
    of.args.spans_q_count = static_cast<int64_t>(ranks.spans_q.size());
    of.args.spans_k = ranks.spans_k.data();
    of.args.spans_k_count = static_cast<int64_t>(ranks.spans_k.size());
}

// A rank's thread. The workspace is zero at first, and in the second call as the first has left it; both must give the
// same bits.
RankResult run_rank(Rank& of, foveal_communicator* communicator, const Ranks& ranks) {
    foveal_parallel_plan* plan = nullptr;
    const auto failed = [&](foveal_status status) {
        const RankResult result{status, foveal_last_error()};
        foveal_parallel_plan_destroy(plan);
        return result;
    };
    if (const auto status = foveal_parallel_plan_create(&of.args, &plan); status != FOVEAL_OK) {
        const RankResult result = failed(status);
        foveal_communicator_abort(communicator);
        return result;
    }
    const size_t bytes = (foveal_parallel_plan_workspace_bytes(plan) + 255) / 256 * 256;
    of.workspace.reset(static_cast<std::byte*>(std::aligned_alloc(256, bytes + 256)));
    std::memset(of.workspace.get(), 0, bytes);
    of.args.workspace = of.workspace.get();
    of.args.workspace_bytes = bytes;
    std::vector<std::byte> first_out, first_lse;
    for (int call = 0; call < 2; ++call) {
        if (ranks.before_call && !ranks.before_call(of.args.rank, of.args)) break;
        const auto status = foveal_parallel_forward(plan, communicator, &of.args, nullptr);
        if (status != FOVEAL_OK) return failed(status);
        if (call == 0) {
            first_out.swap(of.out.bytes), first_lse.swap(of.lse.bytes);
            of.out.bytes.assign(first_out.size(), std::byte{0xFF}),
                of.lse.bytes.assign(first_lse.size(), std::byte{0xFF});
            of.forward.out.data = of.out.view.data = of.out.bytes.data();
            of.forward.lse.data = of.lse.view.data = of.lse.bytes.data();
        } else if (first_out != of.out.bytes || first_lse != of.lse.bytes) {
            foveal_parallel_plan_destroy(plan);
            return {FOVEAL_INTERNAL_ERROR, "the second call in the same workspace gave other bits"};
        }
    }
    foveal_parallel_plan_destroy(plan);
    return {};
}

}  // namespace

Lengths lengths_of(const foveal_forward_args& whole) {
    const auto lengths = [](const foveal_tensor& cu_seqlens, const foveal_tensor& rows) {
        if (cu_seqlens.rank == 0) return std::vector<int64_t>{rows.shape[1]};
        const auto* ends = static_cast<const int32_t*>(cu_seqlens.data);
        std::vector<int64_t> of_each;
        for (int64_t i = 0; i + 1 < cu_seqlens.shape[0]; ++i) of_each.push_back(ends[i + 1] - ends[i]);
        return of_each;
    };
    return {lengths(whole.cu_seqlens_q, whole.q), lengths(whole.cu_seqlens_k, whole.k)};
}

std::vector<foveal_span> placed(foveal_placement placement, const std::vector<int64_t>& lengths, int32_t ranks) {
    int64_t needed = 0;
    const auto sequences = static_cast<int64_t>(lengths.size());
    if (foveal_place(placement, lengths.data(), sequences, ranks, nullptr, 0, &needed) != FOVEAL_OK)
        throw std::runtime_error(foveal_last_error());
    std::vector<foveal_span> spans(static_cast<size_t>(needed));
    if (foveal_place(placement, lengths.data(), sequences, ranks, spans.data(), needed, &needed) != FOVEAL_OK)
        throw std::runtime_error(foveal_last_error());
    return spans;
}

std::vector<foveal_span> scattered(std::mt19937& random, const std::vector<int64_t>& lengths, int32_t ranks) {
    std::vector<foveal_span> spans;
    for (size_t sequence = 0; sequence < lengths.size(); ++sequence) {
        for (int64_t begin = 0; begin < lengths[sequence];) {
            const auto most = static_cast<uint32_t>(lengths[sequence] - begin);
            const int64_t rows = 1 + random() % std::min(most, most / 2 + 40);
            spans.push_back({static_cast<int64_t>(sequence), begin, rows,
                             static_cast<int32_t>(random() % static_cast<uint32_t>(ranks)), 0});
            begin += rows;
        }
    }
    std::shuffle(spans.begin(), spans.end(), random);
    return spans;
}

std::vector<RankResult> run_ranks(const foveal_forward_args& whole, const Ranks& ranks) {
    const auto count = static_cast<size_t>(ranks.count);
    std::vector<foveal_communicator*> communicators(count);
    if (ranks.connect)
        ranks.connect(communicators.data());
    else if (foveal_communicator_create_in_process(ranks.count, ranks.timeout_seconds, communicators.data()) !=
             FOVEAL_OK)
        throw std::runtime_error(foveal_last_error());
    std::vector<Rank> of(count);
    std::vector<RankResult> results(count);
    for (size_t i = 0; i < count; ++i) fill_rank(of[i], static_cast<int32_t>(i), whole, ranks);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i)
        threads.emplace_back([&, i] { results[i] = run_rank(of[i], communicators[i], ranks); });
    for (std::thread& thread : threads) thread.join();
    const int row = whole.out.rank == 4 ? 1 : 0;
    for (size_t i = 0; i < count; ++i) {
        foveal_communicator_destroy(communicators[i]);
        for (const SpanRows& span : of[i].rows_q) {
            copy_rows(of[i].out.view, span.local, whole.out, span.whole, span.rows, row);
            if (whole.lse.rank != 0)
                copy_rows(of[i].lse.view, span.local, whole.lse, span.whole, span.rows, whole.lse.rank - 1);
        }
    }
    return results;
}

CheckResult check_over_ranks(const std::string& text,
                             const std::function<Ranks(const foveal_forward_args&)>& ranks_of) {
    std::string failure;
    CheckResult result = check_case(parse_case(text), FOVEAL_BACKEND_CPU, [&](const foveal_forward_args& whole) {
        const Ranks ranks = ranks_of(whole);
        const std::vector<RankResult> results = run_ranks(whole, ranks);
        for (size_t i = 0; i < results.size(); ++i) {
            if (results[i].status == FOVEAL_OK) continue;
            failure += "rank " + std::to_string(i) + ": " + foveal_status_name(results[i].status) + ": " +
                       results[i].message + "\n";
        }
        return failure.empty() ? foveal_status{FOVEAL_OK} : foveal_status{FOVEAL_INTERNAL_ERROR};
    });
    if (!result.passed()) result.message = text + "\n" + failure + result.message;
    return result;
}

}  // namespace foveal_testing
