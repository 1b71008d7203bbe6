#include "tests/support/backward_check.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "tests/support/backward_oracle.hpp"
#include "tests/support/input_values.hpp"
#include "tests/support/number_formats.hpp"
#include "tests/support/oracle_inputs.hpp"
#include "tests/support/parallel.hpp"
#include "tests/support/sum_order.hpp"

namespace foveal_testing {
namespace {

// Pairs of (query, key) times channels that the oracle does all of; beyond it, rows and keys are sampled.
constexpr double kMaxWorkInFull = 1e8;
constexpr int64_t kSampledGroups = 4, kSampledOfGroup = 24;
// All elements that a row reaches share the errors of its D and of its few large weights: the largest error of fewer
// rows than this is chance, the reference's too, which is worked out in several orders then.
constexpr int64_t kManyRows = 4096;
constexpr int64_t kRowsAGroup = int64_t{1} << 40;  // all rows of a K/V head together

// Sums over rows, by the oracle and by the reference: several times, each row in one of its orders; of few sums more
// often, as the largest error of few is chance.
struct Sums {
    static constexpr size_t kFew = 4096, kDrawsOfFew = 32;
    std::vector<double> oracle;
    std::vector<std::vector<float>> reference;

    size_t orders;  // in which the summands are computed

    Sums(size_t n, size_t of_summands)
        : oracle(n), reference(n < kFew ? kDrawsOfFew : of_summands, std::vector<float>(n)), orders(of_summands) {}

    // In which of the orders a row's summand is computed.
    size_t order_in(size_t draw, int64_t row) const {
        if (draw < orders) return draw;
        return mix64(draw * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(row)) % orders;
    }
    void add(size_t index, int64_t, size_t, double value) { oracle[index] += value; }
    void add(size_t index, int64_t row, size_t order, float value) {
        for (size_t draw = 0; draw < reference.size(); ++draw)
            if (order_in(draw, row) == order) reference[draw][index] += value;
    }
};

// The rows of a K/V head's query heads, all that take part.
std::vector<BackwardRow> read_rows(BackwardData& data, const RowGroup& group, std::vector<int64_t>& heads) {
    const BackwardCase& c = data.the_case();
    const std::vector<float> douts = data.dout.values();
    const std::vector<float> dlses = data.dlse ? data.dlse->values() : std::vector<float>();
    std::vector<BackwardRow> rows;
    for (const RowId& id : group.rows) {
        BackwardRow row;
        row.row = id.row;
        row.q.resize(static_cast<size_t>(c.forward.head_dim));
        row.out.resize(static_cast<size_t>(c.forward.head_dim_v));
        CaseData& forward = data.forward();
        forward.read(TensorId::kQ, group.sequence, id.head_q, id.row, 1, row.q.data());
        forward.read(TensorId::kOut, group.sequence, id.head_q, id.row, 1, row.out.data());
        forward.read(TensorId::kLse, group.sequence, id.head_q, id.row, 1, &row.lse);
        const auto at =
            douts.begin() + RowPlace::of_q(c.forward, c.forward.head_dim_v, group.sequence, id.head_q, id.row);
        row.dout.assign(at, at + c.forward.head_dim_v);
        if (data.dlse)
            row.dlse = dlses[static_cast<size_t>(RowPlace::of_lse(c.forward, group.sequence, id.head_q, id.row))];
        row.options = read_options(forward, group.sequence, id);
        rows.push_back(std::move(row));
        heads.push_back(id.head_q);
    }
    return rows;
}

// Everything of one case.
class Judge {
   public:
    Judge(BackwardData& data, foveal_backend backend)
        : data_(data),
          c_(data.the_case().forward),
          orders_(orders_on(backend)),
          dq_(data.dq.values()),
          dk_(data.dk.values()),
          dv_(data.dv.values()),
          of_dq_(c_.dtype),
          of_dk_(c_.dtype),
          of_dv_(c_.dtype),
          sinks_(static_cast<size_t>(c_.heads_q), orders_.size()),
          slopes_(data.dalibi ? static_cast<size_t>(elements_of(data.dalibi->shape())) : 0, orders_.size()),
          bias_(data.dbias ? static_cast<size_t>(elements_of(data.dbias->shape())) : 0, orders_.size()) {}

    Verdict verdict() {
        const double work = c_.visible_pairs() * static_cast<double>(c_.heads_q * (c_.head_dim + c_.head_dim_v));
        const bool in_full = work <= kMaxWorkInFull;
        std::vector<RowGroup> groups = all_rows(c_, kRowsAGroup);
        std::mt19937_64 random(c_.seed);
        if (!in_full) {
            std::shuffle(groups.begin(), groups.end(), random);
            groups.resize(std::min(groups.size(), static_cast<size_t>(kSampledGroups)));
        }
        for (const RowGroup& group : groups) in_full ? judge_group(group) : judge_samples(group, random);
        for (const auto& [name, statistics] : {std::pair{"dq", &of_dq_}, {"dk", &of_dk_}, {"dv", &of_dv_}})
            take(name, *statistics);
        if (in_full) judge_sums();
        check_zeros_and_poison();
        result_.pass = result_.failure.empty();
        return result_;
    }

   private:
    // Gradients that are sums over rows, which have few elements.
    bool has_sums() const { return data_.dsinks || data_.dalibi || data_.dbias; }

    // In which the reference is worked out: one says enough of many rows. On a GPU as tensor cores add; where few rows
    // take part, D's and the options' part of an error counts as well, which other cores add.
    std::vector<int> orders_on(foveal_backend backend) const {
        const bool on_cpu = backend == FOVEAL_BACKEND_CPU, few = has_few_rows();
        const int64_t several = few || has_sums() ? kOrders : 1,
                      of_few =
                          std::clamp<int64_t>(kManyRows / std::max<int64_t>(rows(), 1), kOrders, kTensorCoreOrders);
        std::vector<int> orders;
        const auto add = [&](int first, int64_t count) {
            for (int n = 0; n < count; ++n) orders.push_back(first + n);
        };
        if (on_cpu || few) add(0, several);
        if (!on_cpu) add(kOrders, few ? of_few : several);
        return orders;
    }

    int64_t rows() const {
        int64_t rows = 0;
        for (int64_t i = 0; i < c_.batch; ++i) rows += std::min(c_.used_q(i), c_.used_k(i));
        return rows * c_.heads_q;
    }
    bool has_few_rows() const { return rows() < kManyRows; }

    void take(const char* name, ErrorStatistics statistics) {
        // The ratio of two norms has as many degrees of freedom as there are query rows, or fewer: of a gradient a few
        // rows with large weights and their D make most of the error.
        constexpr int64_t kRowsOfOne = 4;
        statistics.rows_rounded = std::min(statistics.rows_rounded, of_dq_.rows_rounded) / kRowsOfOne;
        const Verdict one = judge(statistics);
        if (!one.pass) result_.failure += std::string(name) + ": " + one.failure;
        result_.rows_checked += one.rows_checked;
        result_.max_error = std::max(result_.max_error, one.max_error);
        result_.max_reference_error = std::max(result_.max_reference_error, one.max_reference_error);
        result_.norm_error = std::max(result_.norm_error, one.norm_error);
        result_.norm_reference_error = std::max(result_.norm_reference_error, one.norm_reference_error);
    }

    void judge_group(const RowGroup& group) {
        std::vector<int64_t> heads;
        const std::vector<BackwardRow> rows = read_rows(data_, group, heads);
        const KeyValueHead head = read_keys_and_values(data_.forward(), group.sequence, group.head_k);
        std::vector<KeyGradient<double>> keys(static_cast<size_t>(head.len_k), KeyGradient<double>(c_));
        std::vector<std::vector<KeyGradient<float>>> references(
            orders_.size(), std::vector<KeyGradient<float>>(static_cast<size_t>(head.len_k), KeyGradient<float>(c_)));
        RowGradient<double> gradient;
        RowGradient<float> reference;
        for (size_t n = 0; n < rows.size(); ++n) {
            const KeyInterval seen = seen_by(group.sequence, rows[n]);
            differentiate_row(c_, c_.used_q(group.sequence), rows[n], head, seen, gradient);
            add_to_keys(rows[n], gradient, keys);
            add_to_sums(group.sequence, heads[n], rows[n], gradient, 0);
            for (size_t order = 0; order < orders_.size(); ++order) {
                differentiate_row(c_, c_.used_q(group.sequence), rows[n], head, seen, reference, orders_[order]);
                add_to_keys(rows[n], reference, references[order]);
                add_to_sums(group.sequence, heads[n], rows[n], reference, order);
                judge_row(group.sequence, heads[n], rows[n].row, head, gradient, reference, order);
            }
        }
        for (int64_t j = 0; j < head.len_k; ++j) {
            for (size_t order = 0; order < orders_.size(); ++order)
                judge_key(group, j, keys[static_cast<size_t>(j)], references[order][static_cast<size_t>(j)], order);
        }
    }

    void judge_samples(const RowGroup& group, std::mt19937_64& random) {
        std::vector<int64_t> heads;
        const std::vector<BackwardRow> rows = read_rows(data_, group, heads);
        const KeyValueHead head = read_keys_and_values(data_.forward(), group.sequence, group.head_k);
        const int64_t len_q = c_.used_q(group.sequence);
        RowGradient<double> gradient;
        RowGradient<float> reference;
        for (const int64_t n : sample(static_cast<int64_t>(rows.size()), random)) {
            const BackwardRow& row = rows[static_cast<size_t>(n)];
            const KeyInterval seen = seen_by(group.sequence, row);
            differentiate_row(c_, len_q, row, head, seen, gradient);
            differentiate_row(c_, len_q, row, head, seen, reference, orders_[0]);
            judge_row(group.sequence, heads[static_cast<size_t>(n)], row.row, head, gradient, reference, 0);
        }
        for (const int64_t j : sample(head.len_k, random)) {
            KeyGradient<double> key(c_);
            KeyGradient<float> of_reference(c_);
            for (const BackwardRow& row : rows) {
                const KeyInterval seen = seen_by(group.sequence, row);
                if (j < seen.first || j >= seen.last) continue;
                differentiate_row(c_, len_q, row, head, {j, j + 1}, gradient);
                differentiate_row(c_, len_q, row, head, {j, j + 1}, reference, orders_[0]);
                key.add(c_, row, gradient, 0);
                of_reference.add(c_, row, reference, 0);
            }
            judge_key(group, j, key, of_reference, 0);
        }
    }

    // Both ends, the edges of a tile and random ones.
    static std::set<int64_t> sample(int64_t n, std::mt19937_64& random) {
        std::set<int64_t> chosen;
        if (n == 0) return chosen;
        chosen = {0, n - 1, std::min<int64_t>(63, n - 1), std::min<int64_t>(64, n - 1)};
        while (static_cast<int64_t>(chosen.size()) < std::min(n, kSampledOfGroup))
            chosen.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(n)));
        return chosen;
    }

    KeyInterval seen_by(int64_t sequence, const BackwardRow& row) const {
        return keys_seen_by(c_, row.row, c_.used_q(sequence), c_.used_k(sequence), c_.offset_of(sequence));
    }

    template <class Real>
    void add_to_keys(const BackwardRow& row, const RowGradient<Real>& gradient, std::vector<KeyGradient<Real>>& keys) {
        for (size_t n = 0; n < gradient.p.size(); ++n)
            keys[static_cast<size_t>(gradient.keys.first) + n].add(c_, row, gradient, n);
    }

    template <class Real>
    void add_to_sums(int64_t sequence, int64_t head, const BackwardRow& row, const RowGradient<Real>& gradient,
                     size_t order) {
        const int64_t number = (sequence * c_.heads_q + head) * c_.rows_q + row.row;
        const auto add = [order, number](Sums& sums, int64_t index, Real value) {
            sums.add(static_cast<size_t>(index), number, order, value);
        };
        add(sinks_, head, gradient.dsink);
        if (c_.alibi != Alibi::kNone)
            add(slopes_, c_.alibi == Alibi::kByHead ? head : sequence * c_.heads_q + head, gradient.dslope);
        if (!c_.bias) return;
        const int64_t first = bias_row(sequence, head, row.row);
        for (size_t n = 0; n < gradient.dx.size(); ++n)
            add(bias_, first + (c_.bias->by_key ? gradient.keys.first + static_cast<int64_t>(n) : 0), gradient.dx[n]);
    }

    // Where its values begin among those of dbias.
    int64_t bias_row(int64_t sequence, int64_t head, int64_t row) const {
        const ScoreMatrix& m = *c_.bias;
        int64_t at = m.by_sequence ? sequence : 0;
        at = at * (m.by_head ? c_.heads_q : 1) + (m.by_head ? head : 0);
        at = at * (m.by_query ? c_.rows_q : 1) + (m.by_query ? row : 0);
        return at * (m.by_key ? c_.rows_k : 1);
    }

    void judge_row(int64_t sequence, int64_t head_q, int64_t row, const KeyValueHead& head,
                   const RowGradient<double>& gradient, const RowGradient<float>& reference, size_t order) {
        std::vector<double> oracle;
        std::vector<float> textbook;
        query_gradient(c_, head, gradient, oracle);
        query_gradient(c_, head, reference, textbook);
        const float* const got = dq_.data() + RowPlace::of_q(c_, c_.head_dim, sequence, head_q, row);
        add(of_dq_, sequence, head_q, row, got, oracle, textbook, order);
        if (gradient.p.empty() && !std::all_of(got, got + c_.head_dim, [](float x) { return x == 0; }))
            not_zero_ += "dq of a row that sees no key is not 0; ";
    }

    void judge_key(const RowGroup& group, int64_t j, KeyGradient<double> key, KeyGradient<float> reference,
                   size_t order) {
        key.finish(c_);
        reference.finish(c_);
        const float* const dk = dk_.data() + RowPlace::of_k(c_, c_.head_dim, group.sequence, group.head_k, j);
        const float* const dv = dv_.data() + RowPlace::of_k(c_, c_.head_dim_v, group.sequence, group.head_k, j);
        add(of_dk_, group.sequence, group.head_k, j, dk, key.dk, reference.dk, order);
        add(of_dv_, group.sequence, group.head_k, j, dv, key.dv, reference.dv, order);
        const auto is_zero = [](float x) { return x == 0; };
        if (!key.seen && !(std::all_of(dk, dk + c_.head_dim, is_zero) && std::all_of(dv, dv + c_.head_dim_v, is_zero)))
            not_zero_ += "dk or dv of a key that no row sees is not 0; ";
    }

    static void add(ErrorStatistics& statistics, int64_t sequence, int64_t head, int64_t row, const float* got,
                    const std::vector<double>& oracle, const std::vector<float>& reference, size_t order) {
        const auto channels = static_cast<int64_t>(oracle.size());
        if (order == 0)
            statistics.add_row(sequence, head, row, channels, got, oracle.data(), reference.data());
        else
            statistics.add_reference(channels, oracle.data(), reference.data());
    }

    void judge_sums() {
        const auto take_sums = [this](const char* name, GradientTensor& tensor, foveal_dtype dtype, const Sums& sums) {
            ErrorStatistics statistics(dtype);
            const std::vector<float> got = tensor.values();
            for (size_t draw = 0; draw < sums.reference.size(); ++draw) {
                std::vector<float> reference;
                for (const float x : sums.reference[draw]) reference.push_back(round_to(dtype, x));
                add(statistics, 0, 0, 0, got.data(), sums.oracle, reference, draw);
            }
            take(name, statistics);
            if (!tensor.surroundings_untouched()) not_zero_ += std::string(name) + " was written beyond its elements; ";
        };
        if (data_.dsinks) take_sums("dsinks", *data_.dsinks, FOVEAL_F32, sinks_);
        if (data_.dalibi) take_sums("dalibi_slopes", *data_.dalibi, FOVEAL_F32, slopes_);
        if (data_.dbias) take_sums("dbias", *data_.dbias, data_.the_case().dbias_dtype(), bias_);
    }

    // Rows outside the used ones hold what they held, as does what lies between the elements; and all of a sequence
    // without queries or keys is exactly 0.
    void check_zeros_and_poison() {
        int64_t written = 0, not_written = 0;
        const auto count = [&](const std::vector<float>& values, int64_t at, int64_t channels, bool used, bool zero) {
            for (int64_t n = at; n < at + channels; ++n) {
                const float value = values[static_cast<size_t>(n)];
                if (!used) written += !std::isnan(value);
                if (used) not_written += std::isnan(value);
                if (used && zero && value != 0) not_zero_ = "the gradient of a sequence without a partner is not 0; ";
            }
        };
        for (int64_t i = 0; i < c_.batch; ++i) {
            const bool empty = c_.used_q(i) == 0 || c_.used_k(i) == 0;
            for (int64_t row = 0; row < c_.length_q(i); ++row)
                for (int64_t h = 0; h < c_.heads_q; ++h)
                    count(dq_, RowPlace::of_q(c_, c_.head_dim, i, h, row), c_.head_dim, row < c_.used_q(i), empty);
            for (int64_t row = 0; row < c_.length_k(i); ++row) {
                for (int64_t h = 0; h < c_.heads_k; ++h) {
                    const bool used = row < c_.used_k(i);
                    count(dk_, RowPlace::of_k(c_, c_.head_dim, i, h, row), c_.head_dim, used, empty);
                    count(dv_, RowPlace::of_k(c_, c_.head_dim_v, i, h, row), c_.head_dim_v, used, empty);
                }
            }
        }
        if (written > 0) not_zero_ += std::to_string(written) + " elements outside the used rows were written; ";
        if (not_written > 0)
            not_zero_ += std::to_string(not_written) + " used elements are NaN or were never written; ";
        for (GradientTensor* tensor : {&data_.dq, &data_.dk, &data_.dv})
            if (!tensor->surroundings_untouched()) not_zero_ += "memory between the elements was written; ";
        if (!not_zero_.empty()) result_.failure += not_zero_ + "\n";
    }

    BackwardData& data_;
    const Case& c_;
    const std::vector<int> orders_;
    const std::vector<float> dq_, dk_, dv_;
    ErrorStatistics of_dq_, of_dk_, of_dv_;
    Sums sinks_, slopes_, bias_;
    std::string not_zero_;
    Verdict result_;
};

}  // namespace

foveal_status call_backward(const foveal_backward_args& args) { return foveal_backward(&args, nullptr); }

Verdict verify_backward(BackwardData& data, foveal_backend backend) {
    data.forward().synchronize();
    return Judge(data, backend).verdict();
}

CheckResult check_backward(const BackwardCase& c, foveal_backend backend, const Backward& backward) {
    CheckResult result;
    foveal_forward_args forward;
    const foveal_backward_args shapes = backward_shape_args(c, backend, forward);
    const foveal_status supported = foveal_backward_supports(&shapes);
    if (supported == FOVEAL_UNSUPPORTED) {
        result.status = CheckResult::Status::kUnsupported;
        result.message = foveal_last_error();
        return result;
    }
    const std::string rerun = "rerun: " + rerun_line(c, backend);
    const auto refused = [&](foveal_status status) {
        result.message = std::string(foveal_status_name(status)) + ": " + foveal_last_error() + "\n" + rerun;
        return result;
    };
    if (supported != FOVEAL_OK) return refused(supported);
    try {
        BackwardData data(c, backend);
        if (const foveal_status status = data.run_forward(); status != FOVEAL_OK) return refused(status);
        if (const foveal_status status = backward(data.args()); status != FOVEAL_OK) return refused(status);
        result.verdict = verify_backward(data, backend);
    } catch (const std::exception& error) {  // a kernel that faulted, or no memory
        result.message = std::string(error.what()) + "\n" + rerun;
        return result;
    }
    result.status = result.verdict.pass ? CheckResult::Status::kPass : CheckResult::Status::kFail;
    if (!result.verdict.pass) result.message = result.verdict.failure + rerun;
    return result;
}

std::string rerun_line(const BackwardCase& c, foveal_backend backend) {
    return std::string("foveal check --backend ") + backend_name(backend) + " \"" + to_text(c) + "\"";
}

}  // namespace foveal_testing
