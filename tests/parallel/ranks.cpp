#include "tests/parallel/ranks.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <utility>

#include "tests/parallel/rank_rows.hpp"

namespace foveal_testing {
namespace {

// What a call writes, and where its arguments say so.
struct Written {
    Owned* memory;
    foveal_tensor* argument;
};

// One rank's tensors and its arguments, of the forward call or of its gradients.
struct Rank {
    std::vector<SpanRows> rows_q, rows_k;
    Owned q, k, v, out, lse, bias, mask;
    Owned dout, dlse, dq, dk, dv, dsinks, dbias, dalibi;
    std::unique_ptr<std::byte, decltype(&std::free)> workspace{nullptr, &std::free};
    std::unique_ptr<RankDevice> device;  // none: on the CPU
    foveal_forward_args forward{};
    foveal_backward_args gradients{};
    foveal_parallel_args args{};
    bool differentiates = false;

    std::vector<Written> written() {
        if (!differentiates) return {{&out, &forward.out}, {&lse, &forward.lse}};
        return {{&dq, &gradients.dq},         {&dk, &gradients.dk},       {&dv, &gradients.dv},
                {&dsinks, &gradients.dsinks}, {&dbias, &gradients.dbias}, {&dalibi, &gradients.dalibi_slopes}};
    }
    foveal_status plan(foveal_parallel_plan** plan) const {
        return differentiates ? foveal_parallel_backward_plan_create(&args, &gradients, plan)
                              : foveal_parallel_plan_create(&args, plan);
    }
    // Until its results are there.
    foveal_status call(const foveal_parallel_plan* plan, foveal_communicator* communicator) const {
        void* const stream = device ? device->stream() : nullptr;
        const foveal_status status = differentiates
                                         ? foveal_parallel_backward(plan, communicator, &args, &gradients, stream)
                                         : foveal_parallel_forward(plan, communicator, &args, stream);
        return status != FOVEAL_OK || !device ? status : foveal_communicator_wait(communicator, stream);
    }
};

size_t reach_bytes(const foveal_tensor& t) {
    int64_t elements = 1;
    for (int i = 0; i < t.rank; ++i) {
        if (t.shape[i] == 0) return 0;
        elements += (t.shape[i] - 1) * t.stride[i];
    }
    return static_cast<size_t>(elements * bytes_of_element(t.dtype));
}

// All tensors, as they are, to the rank's device.
void move_to_device(Rank& of) {
    of.device->enter();
    foveal_forward_args& f = of.forward;
    foveal_backward_args& g = of.gradients;
    for (foveal_tensor* const t : {&f.q, &f.k, &f.v, &f.out, &f.lse, &f.bias, &f.mask, &f.sinks, &f.alibi_slopes,
                                   &g.dout, &g.dlse, &g.dq, &g.dk, &g.dv, &g.dsinks, &g.dalibi_slopes}) {
        if (t->rank == 0 || t->data == nullptr) continue;
        const void* const host = t->data;
        t->data = of.device->allocate(reach_bytes(*t));
        of.device->upload(t->data, host, reach_bytes(*t));
    }
    f.backend = FOVEAL_BACKEND_SM90;
    of.args.communication_stream = of.device->communication_stream();
}

// What a call needs besides, filled with zeros.
void allocate_workspace(Rank& of, const foveal_parallel_plan* plan) {
    const size_t bytes = (foveal_parallel_plan_workspace_bytes(plan) + 255) / 256 * 256;
    of.workspace.reset(static_cast<std::byte*>(std::aligned_alloc(256, bytes + 256)));
    std::memset(of.workspace.get(), 0, bytes);
    of.args.workspace = of.workspace.get();
    of.args.workspace_bytes = bytes;
    if (!of.device) return;
    of.args.workspace = of.device->allocate(bytes);
    of.device->upload(of.args.workspace, of.workspace.get(), bytes);
    int64_t count = 0;
    const int32_t* const offsets = foveal_parallel_plan_offsets(plan, &count);
    if (count == 0) return;
    const auto offset_bytes = static_cast<size_t>(count) * sizeof(int32_t);
    void* const there = of.device->allocate(offset_bytes);
    of.device->upload(there, offsets, offset_bytes);
    of.args.offsets = static_cast<const int32_t*>(there);
}

void fill_rank(Rank& of, int32_t rank, const foveal_forward_args& whole, const Ranks& ranks) {
    const Lengths lengths = lengths_of(whole);
    const int row = whole.q.rank == 4 ? 1 : 0, row_k = whole.k.rank == 4 ? 1 : 0;
    of.rows_q = rows_of_rank(ranks.spans_q, rank, lengths.q);
    of.rows_k = rows_of_rank(ranks.spans_k, rank, lengths.k);
    of.q = gathered(whole.q, of.rows_q, row);
    of.k = gathered(whole.k, of.rows_k, row_k);
    of.v = gathered(whole.v, of.rows_k, row_k);
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

// The dimension of a bias's rows, or -1 if all share one.
int row_of_matrix(const foveal_tensor& t) { return t.rank < 2 || t.shape[t.rank - 2] == 1 ? -1 : t.rank - 2; }

void fill_gradients(Rank& of, const foveal_backward_args& whole) {
    const foveal_forward_args& forward = *whole.forward;
    const int row = forward.q.rank == 4 ? 1 : 0, row_k = forward.k.rank == 4 ? 1 : 0, row_lse = forward.lse.rank - 1;
    of.differentiates = true;
    of.gradients = whole;
    of.gradients.forward = &of.forward;
    const auto read = [](Owned& own, Owned rows, foveal_tensor& argument) {
        own = std::move(rows);
        argument = own.view;
    };
    read(of.out, gathered(forward.out, of.rows_q, row), of.forward.out);
    read(of.lse, gathered(forward.lse, of.rows_q, row_lse), of.forward.lse);
    read(of.dout, gathered(whole.dout, of.rows_q, row), of.gradients.dout);
    read(of.dlse, gathered(whole.dlse, of.rows_q, row_lse), of.gradients.dlse);
    const auto written = [](Owned& own, const foveal_tensor& like, int dimension, int64_t rows, foveal_tensor& to) {
        if (like.rank != 0) own = Owned(like, dimension, rows);
        to = own.view;
    };
    written(of.dq, whole.dq, row, count_of(of.rows_q), of.gradients.dq);
    written(of.dk, whole.dk, row_k, count_of(of.rows_k), of.gradients.dk);
    written(of.dv, whole.dv, row_k, count_of(of.rows_k), of.gradients.dv);
    written(of.dsinks, whole.dsinks, 0, whole.dsinks.shape[0], of.gradients.dsinks);
    written(of.dalibi, whole.dalibi_slopes, 0, whole.dalibi_slopes.shape[0], of.gradients.dalibi_slopes);
    const int row_bias = row_of_matrix(whole.dbias);
    written(of.dbias, whole.dbias, std::max(row_bias, 0), row_bias < 0 ? whole.dbias.shape[0] : count_of(of.rows_q),
            of.gradients.dbias);
}

// A rank's thread. The workspace is zero at first, and in each further call as the last has left it; all must give the
// same bits.
RankResult run_rank(Rank& of, foveal_communicator* communicator, const Ranks& ranks) {
    if (of.device) move_to_device(of);
    foveal_parallel_plan* plan = nullptr;
    const auto failed = [&](foveal_status status) {
        const RankResult result{status, foveal_last_error()};
        foveal_parallel_plan_destroy(plan);
        return result;
    };
    if (const auto status = of.plan(&plan); status != FOVEAL_OK) {
        const RankResult result = failed(status);
        foveal_communicator_abort(communicator);
        return result;
    }
    allocate_workspace(of, plan);
    std::vector<std::vector<std::byte>> first;
    for (int call = 0; call < ranks.calls; ++call) {
        if (ranks.before_call && !ranks.before_call(of.args.rank, of.args)) break;
        const auto status = of.call(plan, communicator);
        if (status != FOVEAL_OK) return failed(status);
        size_t number = 0;
        for (const Written& written : of.written()) {
            std::vector<std::byte>& bytes = written.memory->bytes;
            if (of.device && !bytes.empty()) of.device->download(bytes.data(), written.argument->data, bytes.size());
            if (call > 0 && first[number++] != written.memory->bytes) {
                foveal_parallel_plan_destroy(plan);
                return {FOVEAL_INTERNAL_ERROR, "another call in the same workspace gave other bits"};
            }
            if (call == 0) first.push_back(written.memory->bytes);
            if (call + 1 == ranks.calls) continue;
            written.memory->poison();
            if (!of.device) written.argument->data = written.memory->view.data;
            if (of.device && !bytes.empty()) of.device->upload(written.argument->data, bytes.data(), bytes.size());
        }
    }
    foveal_parallel_plan_destroy(plan);
    return {};
}

// Each in a thread of its own.
std::vector<RankResult> run(std::vector<Rank>& of, const Ranks& ranks) {
    std::vector<foveal_communicator*> communicators(of.size());
    if (ranks.connect)
        ranks.connect(communicators.data());
    else if (foveal_communicator_create_in_process(ranks.count, ranks.timeout_seconds, communicators.data()) !=
             FOVEAL_OK)
        throw std::runtime_error(foveal_last_error());
    std::vector<RankResult> results(of.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < of.size() && ranks.device; ++i) of[i].device = ranks.device(static_cast<int32_t>(i));
    for (size_t i = 0; i < of.size(); ++i)
        threads.emplace_back([&, i] { results[i] = run_rank(of[i], communicators[i], ranks); });
    for (std::thread& thread : threads) thread.join();
    for (foveal_communicator* communicator : communicators) foveal_communicator_destroy(communicator);
    return results;
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

Ranks zigzag(const foveal_forward_args& whole, int32_t count, foveal_parallel_method method) {
    const Lengths lengths = lengths_of(whole);
    return {.spans_q = placed(FOVEAL_ZIGZAG, lengths.q, count),
            .spans_k = placed(FOVEAL_ZIGZAG, lengths.k, count),
            .count = count,
            .method = method};
}

std::vector<RankResult> run_ranks(const foveal_forward_args& whole, const Ranks& ranks) {
    std::vector<Rank> of(static_cast<size_t>(ranks.count));
    for (size_t i = 0; i < of.size(); ++i) fill_rank(of[i], static_cast<int32_t>(i), whole, ranks);
    std::vector<RankResult> results = run(of, ranks);
    for (const Rank& rank : of) {
        scatter(rank.out, rank.rows_q, whole.out, whole.out.rank == 4 ? 1 : 0);
        scatter(rank.lse, rank.rows_q, whole.lse, whole.lse.rank - 1);
    }
    return results;
}

std::vector<RankResult> run_ranks(const foveal_backward_args& whole, const Ranks& ranks) {
    std::vector<Rank> of(static_cast<size_t>(ranks.count));
    for (size_t i = 0; i < of.size(); ++i) {
        fill_rank(of[i], static_cast<int32_t>(i), *whole.forward, ranks);
        fill_gradients(of[i], whole);
    }
    std::vector<RankResult> results = run(of, ranks);
    const int row_bias = row_of_matrix(whole.dbias);
    for (size_t i = 0; i < of.size(); ++i) {
        scatter(of[i].dq, of[i].rows_q, whole.dq, whole.dq.rank == 4 ? 1 : 0);
        scatter(of[i].dk, of[i].rows_k, whole.dk, whole.dk.rank == 4 ? 1 : 0);
        scatter(of[i].dv, of[i].rows_k, whole.dv, whole.dv.rank == 4 ? 1 : 0);
        if (of[i].dsinks.bytes != of[0].dsinks.bytes || of[i].dalibi.bytes != of[0].dalibi.bytes)
            results[i] = {FOVEAL_INTERNAL_ERROR, "other dsinks or dalibi_slopes than rank 0"};
        if (row_bias >= 0)
            scatter(of[i].dbias, of[i].rows_q, whole.dbias, row_bias);
        else if (of[i].dbias.bytes != of[0].dbias.bytes)
            results[i] = {FOVEAL_INTERNAL_ERROR, "another dbias than rank 0"};
    }
    const auto copy_whole = [](const Owned& from, const foveal_tensor& to) {
        if (to.rank != 0) copy_rows(from.view, 0, to, 0, to.shape[0], 0);
    };
    copy_whole(of[0].dsinks, whole.dsinks);
    copy_whole(of[0].dalibi, whole.dalibi_slopes);
    if (row_bias < 0) copy_whole(of[0].dbias, whole.dbias);
    return results;
}

namespace {

std::string failures_of(const std::vector<RankResult>& results) {
    std::string failure;
    for (size_t i = 0; i < results.size(); ++i)
        if (results[i].status != FOVEAL_OK)
            failure += "rank " + std::to_string(i) + ": " + foveal_status_name(results[i].status) + ": " +
                       results[i].message + "\n";
    return failure;
}

// Does a rank have one row? Then it cannot tell whose its bias's is.
bool refuses_dbias(const foveal_forward_args& whole, const Ranks& ranks) {
    bool has_one_row = false;
    for (int32_t rank = 0; rank < ranks.count; ++rank)
        has_one_row |= count_of(rows_of_rank(ranks.spans_q, rank, lengths_of(whole).q)) == 1;
    return has_one_row && ranks.count > 1;
}

}  // namespace

CheckResult check_over_ranks(const std::string& text,
                             const std::function<Ranks(const foveal_forward_args&)>& ranks_of) {
    std::string failure;
    CheckResult result = check_case(parse_case(text), FOVEAL_BACKEND_CPU, [&](const foveal_forward_args& whole) {
        failure = failures_of(run_ranks(whole, ranks_of(whole)));
        return failure.empty() ? foveal_status{FOVEAL_OK} : foveal_status{FOVEAL_INTERNAL_ERROR};
    });
    if (!result.passed()) result.message = text + "\n" + failure + result.message;
    return result;
}

CheckResult check_gradients_over_ranks(const std::string& text,
                                       const std::function<Ranks(const foveal_forward_args&)>& ranks_of,
                                       const ChangeGradients& change) {
    std::string failure;
    const BackwardCase c = parse_backward_case("backward " + text);
    CheckResult result = check_backward(c, FOVEAL_BACKEND_CPU, [&](const foveal_backward_args& whole) {
        foveal_backward_args of_ranks = whole;
        const Ranks ranks = ranks_of(*whole.forward);
        if (whole.dbias.rank != 0 && refuses_dbias(*whole.forward, ranks)) {
            of_ranks.dbias = {};
            foveal_backward_args of_bias = whole;
            of_bias.dq = of_bias.dk = of_bias.dv = of_bias.dsinks = of_bias.dalibi_slopes = {};
            if (const foveal_status status = foveal_backward(&of_bias, nullptr); status != FOVEAL_OK) return status;
        }
        foveal_forward_args forward = *whole.forward;
        of_ranks.forward = &forward;
        if (change) change(of_ranks, forward);
        failure = failures_of(run_ranks(of_ranks, ranks));
        return failure.empty() ? foveal_status{FOVEAL_OK} : foveal_status{FOVEAL_INTERNAL_ERROR};
    });
    if (!result.passed()) result.message = text + "\n" + failure + result.message;
    return result;
}

}  // namespace foveal_testing
