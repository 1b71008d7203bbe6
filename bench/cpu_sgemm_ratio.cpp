// Speed of the CPU backend beside OpenBLAS: useful FLOP/s of the forward pass, in parts of what a 2048^3 sgemm reaches
// in the same minutes on the same cores; the speed of bf16 and f16 in parts of f32's; and how peak memory grows with s.
//
//   apt-get install libopenblas-dev
//   cmake --preset cpu-only -DFOVEAL_BUILD_BENCH=ON && cmake --build --preset cpu-only
//   build/cpu-only/bin/cpu_sgemm_ratio --json bench/results/cpu/sgemm_ratio.json
//   OPENBLAS_CORETYPE=Haswell build/cpu-only/bin/cpu_sgemm_ratio --simd avx2    # both sides without AVX-512
//
// Each case is verified against the float64 oracle first. Then rounds: sgemm and every case once, in shuffled order,
// each after a pause in which the other's threads go to sleep. Figures are medians over the rounds. Both use as many
// threads as the process may run on, unless OPENBLAS_NUM_THREADS and FOVEAL_NUM_THREADS say otherwise.
#include <cblas.h>
#include <fmt/format.h>
#include <hwy/highway.h>
#include <hwy/targets.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/support/case_data.hpp"
#include "tests/support/check.hpp"

namespace {

using foveal_testing::Case;
using foveal_testing::CaseData;
using foveal_testing::parse_case;

constexpr int kSgemmSize = 2048;
constexpr auto kPause = std::chrono::milliseconds(60);

struct Options {
    std::string command;
    std::string json;
    bool avx2 = false;
    int rounds = 25;
};

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 0; i < argc; ++i) options.command += (i ? " " : "") + std::string(argv[i]);
    for (int i = 1; i < argc; ++i) {
        const std::string_view name = argv[i];
        if (i + 1 == argc) throw std::invalid_argument(fmt::format("{}: unknown, or without a value", name));
        const std::string value = argv[++i];
        if (name == "--json") {
            options.json = value;
        } else if (name == "--rounds") {
            options.rounds = std::stoi(value);
        } else if (name == "--simd" && value == "avx2") {
            options.avx2 = true;
        } else {
            throw std::invalid_argument(
                fmt::format("{} {}: unknown; there are --json FILE, --rounds N, --simd avx2", name, value));
        }
    }
    if (options.rounds < 1) throw std::invalid_argument("--rounds must be at least 1");
    return options;
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

double seconds_of(const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Something to time.
struct Contender {
    std::string name;
    double flops;
    std::function<void()> work;
    std::vector<double> seconds;

    double gflops() const { return flops / median(seconds) * 1e-9; }
};

void run_forward(const foveal_forward_args& args) {
    if (foveal_forward(&args, nullptr) != FOVEAL_OK) throw std::runtime_error(foveal_last_error());
}

Contender sgemm() {
    constexpr size_t kElements = size_t{kSgemmSize} * kSgemmSize;
    struct Matrices {
        std::vector<float> a = std::vector<float>(kElements, 0.5f), b = a, c = a;
    };
    const auto m = std::make_shared<Matrices>();
    const auto multiply = [m] {
        constexpr int n = kSgemmSize;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1.0f, m->a.data(), n, m->b.data(), n, 0.0f,
                    m->c.data(), n);
    };
    return {"sgemm", 2.0 * kSgemmSize * kSgemmSize * kSgemmSize, multiply, {}};
}

// Useful work only: two products over the visible pairs, s^2 / 2 of them where causal.
Contender forward(const std::string& text) {
    const Case c = parse_case(text);
    const foveal_testing::CheckResult check = foveal_testing::check_case(c, FOVEAL_BACKEND_CPU);
    if (!check.passed()) throw std::runtime_error(check.message);
    const std::shared_ptr<CaseData> data = foveal_testing::make_case_data(c, FOVEAL_BACKEND_CPU);
    return {text, c.flops(), [data] { run_forward(data->args()); }, {}};
}

void measure(std::vector<Contender>& contenders, int rounds) {
    std::mt19937 random(1);
    std::vector<size_t> order(contenders.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (int round = -1; round < rounds; ++round) {  // the first warms up
        std::shuffle(order.begin(), order.end(), random);
        for (const size_t i : order) {
            std::this_thread::sleep_for(kPause);
            contenders[i].work();  // fills caches and wakes threads for the one that is timed
            const double seconds = seconds_of(contenders[i].work);
            if (round >= 0) contenders[i].seconds.push_back(seconds);
        }
    }
}

// Peak resident bytes of a process that does one forward pass, and nothing else, on tensors of zeros.
int64_t peak_bytes(int64_t s) {
    constexpr int64_t kHeads = 16, kHeadDim = 64;
    const pid_t child = fork();
    if (child < 0) throw std::runtime_error("fork failed");
    if (child == 0) {
        std::vector<float> memory[4];
        for (std::vector<float>& m : memory) m.resize(static_cast<size_t>(s * kHeads * kHeadDim));
        foveal_forward_args args;
        foveal_forward_args_init(&args);
        foveal_tensor* const tensors[] = {&args.q, &args.k, &args.v, &args.out};
        for (size_t i = 0; i < 4; ++i) {
            *tensors[i] = {memory[i].data(),
                           FOVEAL_F32,
                           4,
                           {1, s, kHeads, kHeadDim},
                           {s * kHeads * kHeadDim, kHeads * kHeadDim, kHeadDim, 1}};
        }
        args.backend = FOVEAL_BACKEND_CPU;
        args.window_right = 0;
        _exit(foveal_forward(&args, nullptr) == FOVEAL_OK ? 0 : 1);
    }
    int status = 0;
    rusage usage{};
    if (wait4(child, &status, 0, &usage) != child || status != 0) throw std::runtime_error("the child failed");
    return int64_t{usage.ru_maxrss} * 1024;
}

std::string cpu_model() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
    }
    return "unknown";
}

std::string today() {
    const std::time_t now = std::time(nullptr);
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
    return text;
}

// The best target that the library has and this CPU supports.
const char* simd_target() {
    const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
    return hwy::TargetName(targets & -targets);
}

nlohmann::ordered_json memory_rows() {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const int64_t s : {2048, 8192}) {
        const int64_t tensors = 4 * s * 16 * 64 * 4, scores = s * s * 16 * 4;
        const int64_t peak = peak_bytes(s);
        fmt::print(
            "peak memory b1 s{} h16 d64 f32 causal: {:.1f} MB, of which tensors {:.1f} MB (all scores would be {:.1f} "
            "MB)\n",
            s, static_cast<double>(peak) * 1e-6, static_cast<double>(tensors) * 1e-6,
            static_cast<double>(scores) * 1e-6);
        rows.push_back({{"case", fmt::format("b1 s{} h16 d64 f32 causal", s)},
                        {"peak_rss_bytes", peak},
                        {"tensor_bytes", tensors}});
    }
    return rows;
}

nlohmann::ordered_json speed_rows(const std::vector<Contender>& contenders) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    const double sgemm_gflops = contenders.front().gflops();
    fmt::print("sgemm {}^3: {:.1f} GFLOP/s, at best {:.1f}\n", kSgemmSize, sgemm_gflops,
               contenders.front().flops / *std::ranges::min_element(contenders.front().seconds) * 1e-9);
    for (size_t i = 1; i < contenders.size(); ++i) {
        const Contender& c = contenders[i];
        const auto [fastest, slowest] = std::minmax_element(c.seconds.begin(), c.seconds.end());
        fmt::print("{:34} {:9.3f} ms  {:6.1f} GFLOP/s  {:.3f} of sgemm\n", c.name, median(c.seconds) * 1e3, c.gflops(),
                   c.gflops() / sgemm_gflops);
        rows.push_back({{"case", c.name},
                        {"flops", c.flops},
                        {"us", median(c.seconds) * 1e6},
                        {"us_min", *fastest * 1e6},
                        {"us_max", *slowest * 1e6},
                        {"gflops", c.gflops()},
                        {"ratio_to_sgemm", c.gflops() / sgemm_gflops}});
    }
    return rows;
}

void run(const Options& options) {
    if (options
            .avx2) {  // the setting belongs to libhwy, so libfoveal obeys it; DisableTargets alone was measured not to
        hwy::SetSupportedTargetsForTest(HWY_AVX2);
        hwy::GetChosenTarget().DeInit();
    }
    nlohmann::ordered_json report{{"suite", "cpu_sgemm_ratio"},
                                  {"cpu", cpu_model()},
                                  {"cpus", sysconf(_SC_NPROCESSORS_ONLN)},
                                  {"simd", simd_target()},
                                  {"openblas", std::string(openblas_get_config())},
                                  {"openblas_core", std::string(openblas_get_corename())},
                                  {"openblas_threads", openblas_get_num_threads()},
                                  {"commit", ""},
                                  {"date", today()},
                                  {"command", options.command},
                                  {"rounds", options.rounds}};
    fmt::print("{}, {}; OpenBLAS for {}, {} threads\n", report["cpu"].get<std::string>(),
               report["simd"].get<std::string>(), report["openblas_core"].get<std::string>(),
               openblas_get_num_threads());
    report["memory"] = memory_rows();

    std::vector<Contender> contenders{sgemm()};
    for (const std::string shape : {"b1 s2048 h16 d64", "b1 s2048 h16 d128", "b1 s4096 h16 d64", "b1 s128 h16 d64"}) {
        for (const std::string dtype : {"f32", "bf16", "f16"}) {
            contenders.push_back(forward(shape + " " + dtype + (shape == "b1 s4096 h16 d64" ? " full" : " causal")));
        }
    }
    measure(contenders, options.rounds);
    report["sgemm_gflops"] = contenders.front().gflops();
    // Far apart, they say that other work disturbed the run: a ratio from such a run means little.
    report["sgemm_us_min"] = *std::ranges::min_element(contenders.front().seconds) * 1e6;
    report["sgemm_us"] = median(contenders.front().seconds) * 1e6;
    report["sgemm_us_max"] = *std::ranges::max_element(contenders.front().seconds) * 1e6;
    report["rows"] = speed_rows(contenders);
    const double bf16 = contenders[2].gflops() / contenders[1].gflops(),
                 f16 = contenders[3].gflops() / contenders[1].gflops();
    fmt::print("b1 s2048 h16 d64 causal: bf16 at {:.3f}, f16 at {:.3f} of f32's speed\n", bf16, f16);
    report["bf16_to_f32"] = bf16;
    report["f16_to_f32"] = f16;
    if (!options.json.empty()) std::ofstream(options.json) << report.dump(1) << "\n";
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
    } catch (const std::exception& error) {
        fmt::print(stderr, "cpu_sgemm_ratio: {}\n", error.what());
        return 1;
    }
    return 0;
}
