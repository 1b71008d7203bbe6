// foveal bench: time of verified results.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend_choice.hpp"
#include "bench_problem.hpp"
#include "cards.hpp"
#include "case_arguments.hpp"
#include "commands.hpp"
#include "json_file.hpp"
#include "machine.hpp"
#include "nvml.hpp"
#include "progress.hpp"
#include "standard_output.hpp"
#include "statistics.hpp"
#include "tests/support/check.hpp"
#include "tests/support/suites.hpp"
#include "timing.hpp"

namespace foveal_tool {
namespace {

constexpr size_t kMaxCaseWidth = 64;

struct BenchOptions {
    CaseArguments cases;
    std::string backend;
    std::optional<std::string> json;
    int rounds = 0;  // 0: as many as the time allows
};

struct Row {
    ProblemText problem;
    foveal_testing::Verdict verdict;
    Timing timing;
    std::optional<Nvml::Reading> reading;

    double us() const { return median(timing.call_us); }
};

// What is measured on, the same for all rows.
struct Bench {
    foveal_backend backend = FOVEAL_BACKEND_CPU;
    Gpu gpu;
    const foveal::Card* card = nullptr;  // NULL: not known, or no GPU
    std::shared_ptr<const Nvml> nvml;
    std::unique_ptr<Timer> timer;
    TimingPlan plan;

    bool on_gpu() const { return backend == FOVEAL_BACKEND_SM90; }
};

Bench prepare(foveal_backend backend, int rounds) {
    Bench bench;
    bench.backend = backend;
    if (rounds > 0) bench.plan.rounds = rounds;
    bench.timer = make_timer(backend);
    if (bench.on_gpu()) {
        bench.gpu = find_gpu();
        bench.card = foveal::find_card(bench.gpu.name);
        bench.nvml = Nvml::open();
    } else {
        bench.plan.warm_up_s = 0.3;
        bench.plan.budget_s = 1.5;
    }
    return bench;
}

// Verifies, then times. Throws Failure where the result is wrong or the case cannot run.
Row run_case(Bench& bench, const ProblemText& text) {
    const auto problem = make_problem(text.text, bench.backend);
    const Call call = [&problem](void* stream) { problem->run(stream); };
    call(nullptr);
    Row row{text, problem->verify(), {}, {}};
    if (!row.verdict.pass) {
        throw Failure("wrong result, not timed:\n" + row.verdict.failure + "rerun: " + problem->rerun_line());
    }
    std::optional<NvmlSampler> sampler;
    row.timing = measure(*bench.timer, call, bench.plan, [&] { sampler.emplace(bench.nvml, bench.gpu.pci_bus_id); });
    row.reading = sampler->stop();
    return row;
}

bool bound_is_known(const Bench& bench) {
    return bench.card != nullptr && bench.card->sustained_flops_per_second &&
           bench.card->sustained_copy_bytes_per_second;
}

std::optional<double> bound_us(const Bench& bench, const ProblemText& problem) {
    if (!bound_is_known(bench)) return std::nullopt;
    return 1e6 * std::max(problem.flops / *bench.card->sustained_flops_per_second,
                          problem.bytes / *bench.card->sustained_copy_bytes_per_second);
}

// A number in its column, "-" where there is none.
std::string cell(std::optional<double> value, int decimals, int width) {
    return value ? fmt::format("{:>{}.{}f}", *value, width, decimals) : fmt::format("{:>{}}", "-", width);
}

std::string time_cell(double us) { return cell(us, us < 100 ? 2 : us < 10000 ? 1 : 0, 10); }

std::string heading(const Bench& bench, size_t case_width) {
    std::string text = fmt::format("{:<{}}  {:>10} {:>6} {:>9} {:>7}", "case", case_width, "us", "+-%",
                                   bench.on_gpu() ? "TFLOP/s" : "GFLOP/s", "GB/s");
    if (bench.on_gpu()) text += fmt::format(" {:>7} {:>5} {:>5} {:>8}", "% bound", "MHz", "W", "host us");
    return text;
}

std::string row_text(const Bench& bench, const Row& row, size_t case_width) {
    const double us = row.us();
    const double flops_unit = bench.on_gpu() ? 1e6 : 1e3;  // per microsecond: tera, giga
    std::string text = fmt::format(
        "{:<{}}  {} {} {} {}", row.problem.text, case_width, time_cell(us), cell(spread_pct(row.timing.call_us), 1, 6),
        cell(row.problem.flops / us / flops_unit, 1, 9), cell(row.problem.bytes / us / 1e3, 1, 7));
    if (!bench.on_gpu()) return text;
    const std::optional<double> bound = bound_us(bench, row.problem);
    const auto reading = row.reading;
    text +=
        fmt::format(" {} {} {} {}", cell(bound ? std::optional(100 * *bound / us) : std::nullopt, 1, 7),
                    cell(reading ? std::optional(reading->sm_mhz) : std::nullopt, 0, 5),
                    cell(reading ? std::optional(reading->watts) : std::nullopt, 0, 5), cell(row.timing.host_us, 2, 8));
    return text;
}

nlohmann::ordered_json number_or_null(std::optional<double> value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

nlohmann::ordered_json row_json(const Row& row) {
    nlohmann::ordered_json json;
    json["case"] = row.problem.text;
    json["flops"] = std::llround(row.problem.flops);
    json["bytes"] = std::llround(row.problem.bytes);
    json["us"] = {{"foveal", row.us()}};
    json["spread_pct"] = {{"foveal", spread_pct(row.timing.call_us)}};
    json["sm_mhz"] = number_or_null(row.reading ? std::optional(row.reading->sm_mhz) : std::nullopt);
    json["watts"] = number_or_null(row.reading ? std::optional(row.reading->watts) : std::nullopt);
    json["max_err"] = row.verdict.max_error;
    json["ref_err"] = row.verdict.max_reference_error;
    json["rounds"] = row.timing.call_us.size();
    json["calls_per_round"] = row.timing.calls_per_round;
    json["host_us"] = number_or_null(row.timing.host_us);
    return json;
}

nlohmann::ordered_json file_json(const std::string& name, const Bench& bench, const std::vector<Row>& rows) {
    nlohmann::ordered_json json = file_heading(name, bench.backend);
    size_t rounds = rows.empty() ? 0 : rows.front().timing.call_us.size();
    for (const Row& row : rows) rounds = std::min(rounds, row.timing.call_us.size());
    json["rounds"] = rounds;  // of the row with the fewest
    json["rows"] = nlohmann::ordered_json::array();
    for (const Row& row : rows) json["rows"].push_back(row_json(row));
    return json;
}

// Of the first column; a longer text pushes its row to the right.
size_t case_column_width(const std::vector<ProblemText>& problems) {
    size_t width = 4;
    for (const ProblemText& problem : problems) width = std::max(width, problem.text.size());
    return std::min(width, kMaxCaseWidth);
}

// The rows that could be measured; what became of the others is printed.
std::vector<Row> run_all(Bench& bench, const std::vector<ProblemText>& problems) {
    const size_t case_width = case_column_width(problems);
    std::vector<Row> rows;
    Progress progress(problems.size());
    progress.print_line(heading(bench, case_width));
    for (size_t i = 0; i < problems.size(); ++i) {
        progress.show(i, problems[i].text);
        try {
            rows.push_back(run_case(bench, problems[i]));
            progress.print_line(row_text(bench, rows.back(), case_width));
        } catch (const std::exception& error) {
            progress.print_line(fmt::format("{}\n  FAILED: {}", problems[i].text, error.what()));
        }
    }
    return rows;
}

void print_legend(const Bench& bench) {
    say("Median time of a call whose result was verified; +-%: the middle 80 % of the samples span this much of it.\n");
    if (!bench.on_gpu()) return;
    if (bound_is_known(bench)) {
        say("Bound: the larger of useful FLOPs / {:.0f} TFLOP/s and bytes / {:.2f} TB/s, as measured on this card; "
            "what\n"
            "L2 holds from one call to the next can be faster.\n",
            *bench.card->sustained_flops_per_second / 1e12, *bench.card->sustained_copy_bytes_per_second / 1e12);
    } else {
        say("No bound: what a {} sustains is not known.\n", bench.gpu.name);
    }
    if (!bench.nvml) say("No clock and no power: NVML (libnvidia-ml.so.1) cannot be loaded.\n");
}

// A suite's name, or "cases", and its texts.
struct Chosen {
    std::string name;
    std::vector<ProblemText> problems;
};

std::string suites_for(foveal_testing::TimedOn backend) {
    std::string names;
    for (const auto& suite : foveal_testing::speed_suites())
        if (suite.timed_on == backend || suite.timed_on == foveal_testing::TimedOn::kEither)
            names += (names.empty() ? "" : ", ") + suite.name;
    return names;
}

Chosen choose(const CaseArguments& arguments, foveal_backend backend) {
    using foveal_testing::TimedOn;
    const TimedOn here = backend == FOVEAL_BACKEND_SM90 ? TimedOn::kGpu : TimedOn::kCpu;
    Chosen chosen{"cases", {}};
    std::vector<std::string> texts = case_texts(arguments.words);
    if (texts.empty()) {
        chosen.name = arguments.suite.empty() ? here == TimedOn::kGpu ? "seed" : "seed_cpu" : arguments.suite;
        const foveal_testing::SpeedSuite& suite = foveal_testing::speed_suite(chosen.name);
        if (suite.timed_on != here && suite.timed_on != TimedOn::kEither)
            throw UsageError(fmt::format("the suite {} is not for this backend; for {} there are {}", suite.name,
                                         foveal_testing::backend_name(backend), suites_for(here)));
        texts = suite.texts;
    }
    for (const std::string& text : texts) chosen.problems.push_back(read_problem(text));
    return chosen;
}

void bench(const BenchOptions& options) {
    const BackendChoice choice = choose_backend(options.backend);
    const Chosen chosen = choose(options.cases, choice.backend);
    JsonFile json(options.json);
    Bench bench = prepare(choice.backend, options.rounds);
    say("{}: {} cases, backend: {}, commit {}\n", chosen.name, chosen.problems.size(), choice.description,
        built_commit());
    if (!bench.on_gpu()) say("{}, {} threads\n", find_cpu().name, find_cpu().threads);
    say("\n");
    const std::vector<Row> rows = run_all(bench, chosen.problems);
    say("\n");
    print_legend(bench);
    flush_text();
    if (rows.size() < chosen.problems.size()) {
        throw Failure(fmt::format("{} of {} cases failed{}", chosen.problems.size() - rows.size(),
                                  chosen.problems.size(),
                                  options.json ? "; " + *options.json + " is not written" : ""));
    }
    if (options.json) json.write(file_json(chosen.name, bench, rows));
}

std::vector<std::string> speed_suite_names() {
    std::vector<std::string> names;
    for (const auto& suite : foveal_testing::speed_suites()) names.push_back(suite.name);
    return names;
}

}  // namespace

void add_bench(CLI::App& app) {
    CLI::App* command = app.add_subcommand("bench", "Time problems whose results it has verified");
    command->footer(
        std::string(kCaseHelp) + "\n" + kMergeHelp +
        "\n\nEach result is first verified against the oracle (large ones on sampled rows); a wrong one is not timed\n"
        "and makes the exit status 1. Then come a warm-up and samples that last at least 1 ms each.\n"
        "Without CASE and --suite: the suite seed on sm90, seed_cpu on the CPU.\n"
        "Examples:\n  foveal bench --suite seed --json seed.json\n  foveal bench b1 s16384 hq32 hk8 d128 bf16 causal");
    const auto options = std::make_shared<BenchOptions>();
    add_case_or_suite_arguments(*command, options->cases, speed_suite_names());
    add_backend_option(*command, options->backend);
    command
        ->add_option("--rounds", options->rounds,
                     fmt::format("Samples a case (default: {} if time allows, at least {})", kMaxRounds, kMinRounds))
        ->check(CLI::PositiveNumber)
        ->type_name("N");
    add_json_option(*command, options->json, "the results");
    command->callback([options] { bench(*options); });
}

}  // namespace foveal_tool
