// foveal check: results against the float64 oracle under contract 1.10.
#include "tests/support/check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "backend_choice.hpp"
#include "case_arguments.hpp"
#include "commands.hpp"
#include "json_file.hpp"
#include "machine.hpp"
#include "progress.hpp"
#include "standard_output.hpp"
#include "tests/support/backward_check.hpp"
#include "tests/support/suites.hpp"

namespace foveal_tool {
namespace {

using foveal_testing::CheckResult;
using Status = CheckResult::Status;

constexpr const char* kDefaultSuite = "correctness";

struct CheckOptions {
    CaseArguments cases;
    std::string backend;
    std::optional<std::string> json;
    int jobs = 1;
    bool verbose = false;
};

// What is checked: texts of cases and of gradients.
struct CheckList {
    std::string name;
    std::vector<std::string> texts;
    std::string left_out;
};

// A text and what became of it.
struct Outcome {
    std::string text;
    CheckResult result;
};

struct Tally {
    std::vector<Outcome> failed, unsupported;
    size_t passed = 0;

    size_t total() const { return passed + failed.size() + unsupported.size(); }
};

// The message on one line, the line that reruns it on the next.
std::string failure_text(const Outcome& outcome) {
    std::string text = "FAILED       " + outcome.text;
    std::string line;
    for (const char c : outcome.result.message + "\n") {
        if (c != '\n') {
            line += c;
            continue;
        }
        if (!line.empty()) text += "\n             " + line;
        line.clear();
    }
    return text;
}

std::string outcome_text(const Outcome& outcome) {
    switch (outcome.result.status) {
        case Status::kPass:
            return "passed       " + outcome.text + "\n             " + outcome.result.verdict.summary();
        case Status::kUnsupported:
            return "unsupported  " + outcome.text + "\n             " + outcome.result.message;
        case Status::kFail:
            break;
    }
    return failure_text(outcome);
}

template <class AnyCase>
CheckResult failed(const AnyCase& c, foveal_backend backend, const std::exception& error) {
    CheckResult result;
    result.message = std::string(error.what()) + "\nrerun: " + foveal_testing::rerun_line(c, backend);
    return result;
}

// What a check throws (no memory, a CUDA error) fails the case and not the whole run.
CheckResult check_without_throwing(const std::string& text, foveal_backend backend) {
    if (foveal_testing::is_backward_text(text)) {
        const foveal_testing::BackwardCase c = foveal_testing::parse_backward_case(text);
        try {
            return foveal_testing::check_backward(c, backend);
        } catch (const std::exception& error) {
            return failed(c, backend, error);
        }
    }
    const foveal_testing::Case c = foveal_testing::parse_case(text);
    try {
        return foveal_testing::check_case(c, backend);
    } catch (const std::exception& error) {
        return failed(c, backend, error);
    }
}

// Checks all cases on `jobs` threads and prints what is worth a line.
class Checker {
   public:
    Checker(const std::vector<std::string>& texts, foveal_backend backend, bool verbose)
        : texts_(texts), backend_(backend), verbose_(verbose), progress_(texts.size()) {}

    Tally run(int jobs) {
        std::vector<std::thread> threads;
        for (int i = 1; i < jobs; ++i) threads.emplace_back([this] { work(); });
        work();
        for (std::thread& thread : threads) thread.join();
        return std::move(tally_);
    }

   private:
    void work() {
        for (size_t i = next_++; i < texts_.size(); i = next_++) {
            {
                const std::scoped_lock lock(mutex_);
                progress_.show(tally_.total(), texts_[i]);
            }
            record({texts_[i], check_without_throwing(texts_[i], backend_)});
        }
    }

    void record(Outcome outcome) {
        const std::scoped_lock lock(mutex_);
        const Status status = outcome.result.status;
        if (verbose_ || status == Status::kFail) progress_.print_line(outcome_text(outcome));
        if (status == Status::kPass) ++tally_.passed;
        if (status == Status::kFail) tally_.failed.push_back(std::move(outcome));
        if (status == Status::kUnsupported) tally_.unsupported.push_back(std::move(outcome));
    }

    const std::vector<std::string>& texts_;
    const foveal_backend backend_;
    const bool verbose_;
    std::atomic<size_t> next_{0};
    std::mutex mutex_;
    Progress progress_;
    Tally tally_;
};

nlohmann::ordered_json list_json(const std::vector<Outcome>& outcomes) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Outcome& outcome : outcomes) {
        list.push_back({{"case", outcome.text}, {"message", outcome.result.message}});
    }
    return list;
}

nlohmann::ordered_json summary_json(const CheckList& list, foveal_backend backend, const Tally& tally, double seconds) {
    nlohmann::ordered_json json = file_heading(list.name, backend);
    json["cases"] = tally.total();
    json["passed"] = tally.passed;
    json["failed"] = tally.failed.size();
    json["unsupported"] = tally.unsupported.size();
    json["left_out"] = list.left_out;
    json["seconds"] = seconds;
    json["failures"] = list_json(tally.failed);
    json["unsupported_cases"] = list_json(tally.unsupported);
    return json;
}

// Each reason once: a suite may hold hundreds of cases that are refused for the same one.
void print_unsupported(const Tally& tally) {
    std::map<std::string, std::pair<size_t, const Outcome*>> reasons;
    for (const Outcome& outcome : tally.unsupported) {
        auto& [count, first] = reasons[outcome.result.message];
        if (count++ == 0) first = &outcome;
    }
    for (const auto& [reason, cases] : reasons) {
        say("unsupported  {} cases, the first: {}\n             {}\n", cases.first, cases.second->text, reason);
    }
}

int default_jobs(foveal_backend backend) {
    const int cores = static_cast<int>(find_cpu().threads);
    // On a GPU the oracle is what takes the time, and most of its cases have less work than all cores can share. Each
    // job holds its tensors in device memory, so not too many.
    return backend == FOVEAL_BACKEND_SM90 ? std::clamp(cores / 2, 1, 8) : 1;
}

// As to_text() has it.
std::string canonical(const std::string& text) {
    if (foveal_testing::is_backward_text(text)) return to_text(foveal_testing::parse_backward_case(text));
    return to_text(foveal_testing::parse_case(text));
}

// The cases named, which are called "cases" together, or else those of the suite.
CheckList chosen_cases(const CaseArguments& arguments, foveal_backend backend) {
    if (!arguments.words.empty()) {
        CheckList list{"cases", {}, ""};
        for (const std::string& text : case_texts(arguments.words)) list.texts.push_back(canonical(text));
        return list;
    }
    const foveal_testing::Suite suite =
        foveal_testing::correctness_suite(arguments.suite.empty() ? kDefaultSuite : arguments.suite, backend);
    CheckList list{suite.name, {}, suite.left_out};
    for (const foveal_testing::Case& c : suite.cases) list.texts.push_back(to_text(c));
    return list;
}

void check(const CheckOptions& options) {
    const BackendChoice choice = choose_backend(options.backend);
    const CheckList list = chosen_cases(options.cases, choice.backend);
    JsonFile json(options.json);
    const int jobs = options.jobs > 0 ? options.jobs : default_jobs(choice.backend);
    const bool verbose = options.verbose || !options.cases.words.empty();
    say("{}: {} cases, backend: {}\n", list.name, list.texts.size(), choice.description);
    flush_text();

    const auto start = std::chrono::steady_clock::now();
    const Tally tally = Checker(list.texts, choice.backend, verbose).run(jobs);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

    if (!verbose) print_unsupported(tally);
    if (!list.left_out.empty()) say("left out     {}\n", list.left_out);
    say("{} passed, {} failed, {} unsupported in {:.1f} s\n", tally.passed, tally.failed.size(),
        tally.unsupported.size(), seconds);
    if (options.json) json.write(summary_json(list, choice.backend, tally, seconds));
    if (!tally.failed.empty()) throw Failure("");
    if (tally.passed == 0 && tally.total() > 0) throw Failure("nothing was checked");
}

}  // namespace

void add_check(CLI::App& app) {
    CLI::App* command =
        app.add_subcommand("check", "Check results against a float64 oracle; exit status 1 on any failure");
    command->footer(
        std::string(kCaseHelp) +
        "\n\nThe gradients of a case are a CASE too: backward, then its words, dlse (one comes in through the\n"
        "log-sum-exp) and dbias_f32. Their reference has the same out and log-sum-exp.\n"
        "A result passes if its largest error is at most twice that of the textbook forward in the same\n"
        "precision (plus one rounding of the output), its error norm at most 1.2 times, the log-sum-exp within\n"
        "2e-5 (1 + |lse|), and if every output element, and nothing else, was written.\n"
        "Without CASE and --suite: the suite correctness.\n"
        "Examples:\n  foveal check --suite corner\n"
        "  foveal check --backend cpu \"b2 s113 h4 f32 causal\" \"varlen qlens=3,0 klens=5,2 h2 bf16 lse\"");
    const auto options = std::make_shared<CheckOptions>();
    options->jobs = 0;
    add_case_or_suite_arguments(*command, options->cases, foveal_testing::correctness_suite_names());
    add_backend_option(*command, options->backend);
    command->add_option("--jobs,-j", options->jobs, "Cases at the same time (default: 1 on the CPU, up to 8 on a GPU)")
        ->check(CLI::PositiveNumber)
        ->type_name("N");
    add_json_option(*command, options->json, "a summary");
    command->add_flag("--verbose,-v", options->verbose, "A line for every case, not for failures alone");
    command->callback([options] { check(*options); });
}

}  // namespace foveal_tool
