#include "bench_problem.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "commands.hpp"
#include "tests/support/cache_data.hpp"
#include "tests/support/case_data.hpp"
#include "tests/support/check.hpp"
#include "tests/support/merge_data.hpp"

namespace foveal_tool {
namespace {

using foveal_testing::CacheCase;
using foveal_testing::Case;
using foveal_testing::MergeCase;
using foveal_testing::Verdict;

// Elements of parts that the oracle of a merge goes through; of a larger one it takes each n-th row.
constexpr int64_t kMaxMergeElementsInFull = 1 << 21;

[[noreturn]] void refuse(foveal_status status, const std::string& why) {
    throw Failure(fmt::format("{}: {}", foveal_status_name(status), why));
}

class ForwardProblem final : public Problem {
   public:
    ForwardProblem(const Case& c, foveal_backend backend) : case_(c), backend_(backend) {
        const foveal_forward_args shapes = foveal_testing::shape_args(c, backend);
        if (const foveal_status status = foveal_supports(&shapes)) refuse(status, foveal_last_error());
        data_ = foveal_testing::make_case_data(c, backend);
    }
    void run(void* stream) override {
        if (const foveal_status status = foveal_forward(&data_->args(), stream)) refuse(status, foveal_last_error());
    }
    Verdict verify() override { return foveal_testing::verify(*data_); }
    std::string rerun_line() const override { return foveal_testing::rerun_line(case_, backend_); }

   private:
    Case case_;
    foveal_backend backend_;
    std::unique_ptr<foveal_testing::CaseData> data_;
};

class MergeProblem final : public Problem {
   public:
    MergeProblem(const MergeCase& c, foveal_backend backend)
        : case_(c), backend_(backend), values_(draw_parts(c, c.seed)), data_(backend, c, values_) {
        parts_ = data_.parts();
        out_ = data_.out.view();
        options_.backend = static_cast<foveal::Backend>(backend);
        if (c.lse) options_.lse = data_.lse.view();
    }

    void run(void* stream) override {
        try {
            foveal::merge(parts_, out_, options_, stream);
        } catch (const foveal::Error& error) {
            refuse(error.status(), error.what());
        }
    }

    Verdict verify() override {
        const std::vector<float> out = data_.out.values();
        const std::vector<float> lse = case_.lse ? data_.lse.values() : std::vector<float>{};
        const int64_t elements = case_.all_rows() * case_.channels * case_.parts;
        Verdict verdict = judge_merged(case_, values_, out, lse, elements / kMaxMergeElementsInFull | 1);
        const auto finite = [](float x) { return std::isfinite(x); };
        if (!std::all_of(out.begin(), out.end(), finite)) verdict.failure += "out: elements are not finite\n";
        if (!data_.out.surroundings_untouched()) verdict.failure += "out: memory between the rows was written\n";
        if (!data_.lse.surroundings_untouched()) verdict.failure += "lse: memory between the rows was written\n";
        verdict.pass = verdict.failure.empty();
        return verdict;
    }

    std::string rerun_line() const override {
        return fmt::format("foveal bench --backend {} \"{}\"", foveal_testing::backend_name(backend_), to_text(case_));
    }

   private:
    MergeCase case_;
    foveal_backend backend_;
    foveal_testing::PartialValues values_;
    foveal_testing::MergeData data_;
    std::vector<foveal::Part> parts_;
    foveal::Tensor out_;
    foveal::MergeOptions options_;
};

class CacheProblem final : public Problem {
   public:
    CacheProblem(const CacheCase& c, foveal_backend backend) : case_(c), backend_(backend), data_(backend, c) {}

    void run(void* stream) override {
        try {
            data_.run(stream);
        } catch (const foveal::Error& error) {
            refuse(error.status(), error.what());
        }
    }
    Verdict verify() override {
        Verdict verdict;
        verdict.failure = data_.failure();
        verdict.pass = verdict.failure.empty();
        verdict.rows_checked = case_.written_rows();
        return verdict;
    }
    std::string rerun_line() const override {
        return fmt::format("foveal bench --backend {} \"{}\"", foveal_testing::backend_name(backend_), to_text(case_));
    }

   private:
    CacheCase case_;
    foveal_backend backend_;
    foveal_testing::CacheData data_;
};

}  // namespace

ProblemText read_problem(const std::string& text) {
    if (foveal_testing::is_merge_text(text)) {
        const MergeCase c = foveal_testing::parse_merge_case(text);
        return {to_text(c), c.flops(), c.min_bytes()};
    }
    if (foveal_testing::is_cache_text(text)) {
        const CacheCase c = foveal_testing::parse_cache_case(text);
        return {to_text(c), c.flops(), c.min_bytes()};
    }
    const Case c = foveal_testing::parse_case(text);
    return {to_text(c), c.flops(), c.min_bytes()};
}

std::unique_ptr<Problem> make_problem(const std::string& text, foveal_backend backend) {
    if (foveal_testing::is_merge_text(text))
        return std::make_unique<MergeProblem>(foveal_testing::parse_merge_case(text), backend);
    if (foveal_testing::is_cache_text(text))
        return std::make_unique<CacheProblem>(foveal_testing::parse_cache_case(text), backend);
    return std::make_unique<ForwardProblem>(foveal_testing::parse_case(text), backend);
}

}  // namespace foveal_tool
