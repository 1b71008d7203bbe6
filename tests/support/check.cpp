#include "tests/support/check.hpp"

#include <algorithm>
#include <cmath>

#include "tests/support/oracle.hpp"
#include "tests/support/oracle_inputs.hpp"
#include "tests/support/parallel.hpp"

namespace foveal_testing {
namespace {

// What the oracle does for every row of, in pairs of (query, key); beyond it, rows are sampled.
constexpr double kMaxPairsInFull = 1.5e6;
constexpr int64_t kSampledRows = 384;
constexpr int64_t kRowsAGroup = 64;
// The largest error of fewer elements than this is chance, the reference's too: it is worked out more than once.
constexpr int64_t kManyElements = 4096;
constexpr float kAbove[] = {0.2F, 0.4F, 0.6F};  // as reference_row() says; ln 2 would round P as 0 does

// NaN is right too, in every channel, where a NaN in V at a key that the row does not see, or that a mask or a bias
// hides from it, may reach it (contract 1.6).
bool may_be_nan(const Case& c, int64_t row, int64_t len_q, int64_t len_k, const RowOptions& options) {
    return c.nan_value && *c.nan_value < len_k && may_reach(c, row, len_q, len_k, *c.nan_value, options.query_offset);
}

void check_group(CaseData& data, const RowGroup& group, bool few_elements, ErrorStatistics& statistics) {
    const Case& c = data.the_case();
    const int64_t len_q = c.used_q(group.sequence);
    const KeyValueHead head = read_keys_and_values(data, group.sequence, group.head_k);
    std::vector<float> q(static_cast<size_t>(c.head_dim));
    std::vector<float> out(static_cast<size_t>(c.head_dim_v));
    OracleRow oracle;
    ReferenceRow reference;
    const bool e4m3_p = c.is_e4m3() && data.args().backend == FOVEAL_BACKEND_SM90;
    for (const RowId& id : group.rows) {
        data.read(TensorId::kQ, group.sequence, id.head_q, id.row, 1, q.data());
        data.read(TensorId::kOut, group.sequence, id.head_q, id.row, 1, out.data());
        const RowOptions options = read_options(data, group.sequence, id);
        oracle_row(c, id.row, len_q, q.data(), head, options, oracle);
        reference_row(c, id.row, len_q, q.data(), head, options, reference, 0, e4m3_p);
        if (may_be_nan(c, id.row, len_q, head.len_k, options) && std::isnan(out[0]))
            std::ranges::fill(oracle.out, static_cast<double>(NAN));
        statistics.add_row(group.sequence, id.head_q, id.row, c.head_dim_v, out.data(), oracle.out.data(),
                           reference.out.data());
        for (const float above : kAbove) {
            if (!few_elements && !e4m3_p) break;  // with so few bits all, not only the largest, are chance
            reference_row(c, id.row, len_q, q.data(), head, options, reference, above, e4m3_p);
            statistics.add_reference(c.head_dim_v, oracle.out.data(), reference.out.data());
        }
        if (!c.lse) continue;
        float lse = 0;
        data.read(TensorId::kLse, group.sequence, id.head_q, id.row, 1, &lse);
        statistics.add_lse(group.sequence, id.head_q, id.row, lse, oracle.lse, e4m3_p);
    }
}

int64_t used_rows(const Case& c) {
    int64_t rows = 0;
    for (int64_t i = 0; i < c.batch; ++i) rows += c.used_q(i);
    return rows * c.heads_q;
}

// Poison must be gone from every used element and still be everywhere else; NaN and infinity have no business in the
// result of finite inputs.
std::string scan_text(CaseData& data, TensorId id, int64_t used_elements) {
    const bool finite = id == TensorId::kLse || !data.the_case().nan_value;
    const OutputScan scan = data.scan(id);
    const int64_t unused = scan.elements - used_elements;
    std::string text;
    if (scan.poison > unused) text += std::to_string(scan.poison - unused) + " elements were never written; ";
    if (scan.poison < unused)
        text += std::to_string(unused - scan.poison) + " elements outside the used rows were written; ";
    if (scan.nan > 0 && finite) text += std::to_string(scan.nan) + " elements are NaN; ";
    if (scan.infinite > 0 && id == TensorId::kOut) text += std::to_string(scan.infinite) + " elements are infinite; ";
    return text.empty() ? "" : std::string(tensor_name(id)) + ": " + text + "\n";
}

// Pairs that are computed, and what it takes to read the keys and values of a group and the bias and mask of a row, of
// which a window spares nothing.
double cost_in_pairs(const Case& c) {
    double read = 0;
    const double matrices = (c.bias ? 0.25 : 0) + (c.mask ? 0.25 : 0);
    for (int64_t i = 0; i < c.batch; ++i) {
        read +=
            static_cast<double>(c.used_q(i)) * (static_cast<double>(c.used_k(i)) / static_cast<double>(kRowsAGroup) +
                                                matrices * static_cast<double>(c.rows_k));
    }
    return (c.visible_pairs() + read) * static_cast<double>(c.heads_q);
}

}  // namespace

Verdict verify(CaseData& data) {
    const Case& c = data.the_case();
    data.synchronize();
    const bool in_full = cost_in_pairs(c) <= kMaxPairsInFull;
    const std::vector<RowGroup> groups = in_full ? all_rows(c, kRowsAGroup) : sampled_rows(c, kSampledRows);
    const bool few_elements = used_rows(c) * c.head_dim_v < kManyElements;
    const auto count = static_cast<int64_t>(groups.size());
    std::vector<ErrorStatistics> of_worker(static_cast<size_t>(worker_count(count)), ErrorStatistics(c.out_dtype()));
    parallel_for(count, [&](int64_t item, int64_t worker) {
        check_group(data, groups[static_cast<size_t>(item)], few_elements, of_worker[static_cast<size_t>(worker)]);
    });
    ErrorStatistics statistics(c.out_dtype());
    for (const ErrorStatistics& part : of_worker) statistics.merge(part);

    Verdict verdict = judge(statistics);
    verdict.failure += scan_text(data, TensorId::kOut, used_rows(c) * c.head_dim_v);
    if (c.lse) verdict.failure += scan_text(data, TensorId::kLse, used_rows(c));
    verdict.pass = verdict.failure.empty();
    return verdict;
}

foveal_status call_forward(const foveal_forward_args& args) { return foveal_forward(&args, nullptr); }

CheckResult check_case(const Case& c, foveal_backend backend, const Forward& forward) {
    CheckResult result;
    const foveal_forward_args shapes = shape_args(c, backend);
    const foveal_status supported = foveal_supports(&shapes);
    if (supported == FOVEAL_UNSUPPORTED) {
        result.status = CheckResult::Status::kUnsupported;
        result.message = foveal_last_error();
        return result;
    }
    const std::string rerun = "rerun: " + rerun_line(c, backend);
    if (supported != FOVEAL_OK) {
        result.message = std::string(foveal_status_name(supported)) + ": " + foveal_last_error() + "\n" + rerun;
        return result;
    }
    try {
        const std::unique_ptr<CaseData> data = make_case_data(c, backend);
        const foveal_status status = forward(data->args());
        if (status != FOVEAL_OK) {
            result.message = std::string(foveal_status_name(status)) + ": " + foveal_last_error() + "\n" + rerun;
            return result;
        }
        result.verdict = verify(*data);
    } catch (const std::exception& error) {  // a kernel that faulted, or no memory
        result.message = std::string(error.what()) + "\n" + rerun;
        return result;
    }
    result.status = result.verdict.pass ? CheckResult::Status::kPass : CheckResult::Status::kFail;
    if (!result.verdict.pass) result.message = result.verdict.failure + rerun;
    return result;
}

const char* backend_name(foveal_backend backend) {
    return backend == FOVEAL_BACKEND_CPU ? "cpu" : backend == FOVEAL_BACKEND_SM90 ? "sm90" : "auto";
}

std::string rerun_line(const Case& c, foveal_backend backend) {
    return std::string("foveal check --backend ") + backend_name(backend) + " \"" + to_text(c) + "\"";
}

}  // namespace foveal_testing
