// foveal info: the library, this machine, and what is supported.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cards.hpp"
#include "commands.hpp"
#include "machine.hpp"
#include "standard_output.hpp"
#include "support_table.hpp"
#include "tests/support/case_data.hpp"

namespace foveal_tool {
namespace {

using Texts = std::vector<std::string>;

constexpr double kMiB = 1024.0 * 1024.0;

void print_gpu(const Gpu& gpu) {
    if (!gpu.name.empty()) {
        say("GPU        {} (device {}, {}), compute capability {}.{}\n", gpu.name, gpu.ordinal, gpu.pci_bus_id,
            gpu.compute_major, gpu.compute_minor);
        say("           {} SMs up to {} MHz, memory {:.0f} MiB up to {} MHz, L2 {:.0f} MiB\n", gpu.multiprocessors,
            gpu.sm_clock_mhz, static_cast<double>(gpu.memory_bytes) / kMiB, gpu.memory_clock_mhz,
            static_cast<double>(gpu.l2_bytes) / kMiB);
    }
    if (!gpu.usable()) say("GPU        none that sm90 can use: {}\n", gpu.why_unusable);
    if (!gpu.runtime_cuda.empty()) {
        say("CUDA       built with {}; driver {}\n", gpu.runtime_cuda,
            gpu.driver_cuda.empty()
                ? "none"
                : fmt::format("{}, runs CUDA up to {}", gpu.driver.empty() ? "of unknown version" : gpu.driver,
                              gpu.driver_cuda));
    }
}

void print_cpu(const Cpu& cpu) {
    const char* limit = std::getenv("FOVEAL_NUM_THREADS");
    say("CPU        {}, {} threads{}\n", cpu.name, cpu.threads,
        limit == nullptr ? "" : fmt::format(" (FOVEAL_NUM_THREADS={})", limit));
    say("SIMD       {} (of Highway's targets, best first)\n", fmt::join(cpu.simd_targets, " "));
}

// The table of what is supported asks foveal_supports about each combination of these.
struct HeadDims {
    const char* title;
    const char* words;
};
constexpr HeadDims kHeadDims[] = {{"1", "d1"},     {"32", "d32"},   {"64", "d64"},   {"80", "d80"},
                                  {"96", "d96"},   {"128", "d128"}, {"192", "d192"}, {"192/128", "d192 dv128"},
                                  {"256", "d256"}, {"512", "d512"}};
constexpr const char* kForms[][2] = {{"dense", "b2 s256"}, {"varlen", "varlen qlens=256,100 klens=256,300"}};
constexpr const char* kMasks[][2] = {
    {"full", "full"}, {"causal", "causal"}, {"causal topleft", "causal topleft"}, {"window", "left64 right32"}};

bool supports(const std::string& words, foveal_backend backend) {
    const foveal_forward_args args = foveal_testing::shape_args(foveal_testing::parse_case(words + " h2 lse"), backend);
    return foveal_supports(&args) == FOVEAL_OK;
}

std::string supported_dims(foveal_backend backend, const std::string& words) {
    std::string cells;
    for (const HeadDims& dims : kHeadDims) {
        cells += fmt::format("{:>8}", supports(words + " " + dims.words, backend) ? "yes" : "-");
    }
    return cells;
}

// Lines that look the same but for one word become one line with these words together.
using Line = std::pair<std::string, Texts>;  // what they share, the words
void join_line(std::vector<Line>& lines, const std::string& shared, const std::string& word) {
    const auto same = std::find_if(lines.begin(), lines.end(), [&](const Line& line) { return line.first == shared; });
    if (same == lines.end()) {
        lines.push_back({shared, {word}});
    } else {
        same->second.push_back(word);
    }
}

std::string masks_text(const std::string& dims, const Texts& masks) {
    if (dims.find("yes") == std::string::npos) return "";
    return masks.size() == std::size(kMasks) ? "every mask" : fmt::format("{}", fmt::join(masks, ", "));
}

void print_supported(foveal_backend backend, const char* backend_name, const char* dtype) {
    std::vector<Line> by_form_and_masks;
    for (const auto& form : kForms) {
        std::vector<Line> by_dims;
        for (const auto& mask : kMasks) {
            join_line(by_dims, supported_dims(backend, fmt::format("{} {} {}", form[1], dtype, mask[1])), mask[0]);
        }
        for (const auto& [dims, masks] : by_dims) {
            join_line(by_form_and_masks, dims + "  " + masks_text(dims, masks), form[0]);
        }
    }
    for (const auto& [line, forms] : by_form_and_masks) {
        say("  {:<5} {:<5} {:<14}{}\n", backend_name, dtype, fmt::format("{}", fmt::join(forms, ", ")), line);
    }
}

void print_support_table() {
    std::string titles;
    for (const HeadDims& dims : kHeadDims) titles += fmt::format("{:>8}", dims.title);
    say("\nSupported, by d (or d/d_v), any ratio of heads, with or without log-sum-exp:\n  {:<26}{}\n", "", titles);
    for (const auto& [backend, name] : {std::pair{FOVEAL_BACKEND_CPU, "cpu"}, {FOVEAL_BACKEND_SM90, "sm90"}}) {
        if (foveal_backend_built(backend) == 0) {
            say("  {:<5} not in this build\n", name);
            continue;
        }
        for (const char* dtype : {"f32", "bf16", "f16", "e4m3"}) print_supported(backend, name, dtype);
    }
}

Texts built_backends() {
    Texts backends;
    for (const auto& [backend, name] : {std::pair{FOVEAL_BACKEND_CPU, "cpu"}, {FOVEAL_BACKEND_SM90, "sm90"}}) {
        if (foveal_backend_built(backend) != 0) backends.push_back(name);
    }
    return backends;
}

void info() {
    say("foveal     {} (commit {})\nbackends   {}\n", foveal_version(), built_commit(),
        fmt::join(built_backends(), " "));
    print_gpu(find_gpu());
    print_cpu(find_cpu());
    print_support_table();
}

using Json = nlohmann::ordered_json;

Json rate_json(const std::optional<double>& rate) { return rate ? Json(*rate) : Json(); }

// null for a rate that nobody has measured.
Json cards_json() {
    Json cards = Json::array();
    for (const foveal::Card& card : foveal::kCards) {
        cards.push_back({{"name", card.name},
                         {"sms", card.sms},
                         {"l2_bytes", card.l2_bytes},
                         {"dram_bytes_per_second", card.dram_bytes_per_second},
                         {"sustained_flops_per_second", rate_json(card.sustained_flops_per_second)},
                         {"sustained_copy_bytes_per_second", rate_json(card.sustained_copy_bytes_per_second)},
                         {"sustained_read_bytes_per_second", rate_json(card.sustained_read_bytes_per_second)}});
    }
    return cards;
}

Json gpu_json(const Gpu& gpu) {
    if (gpu.name.empty()) return {};
    return {{"name", gpu.name},
            {"ordinal", gpu.ordinal},
            {"pci_bus_id", gpu.pci_bus_id},
            {"compute_capability", fmt::format("{}.{}", gpu.compute_major, gpu.compute_minor)},
            {"sms", gpu.multiprocessors},
            {"sm_mhz", gpu.sm_clock_mhz},
            {"memory_mhz", gpu.memory_clock_mhz},
            {"memory_bytes", gpu.memory_bytes},
            {"l2_bytes", gpu.l2_bytes},
            {"driver", gpu.driver}};
}

// What info prints, but for the table of what is supported; and the cards whose rates are known.
Json info_json() {
    const Gpu gpu = find_gpu();
    const Cpu cpu = find_cpu();
    return {{"version", foveal_version()},
            {"commit", built_commit()},
            {"backends", built_backends()},
            {"gpu", gpu_json(gpu)},
            {"sm90_unusable", gpu.usable() ? Json() : Json(gpu.why_unusable)},
            {"cuda", gpu.runtime_cuda.empty() ? Json() : Json(gpu.runtime_cuda)},
            {"cpu", {{"name", cpu.name}, {"threads", cpu.threads}, {"simd_targets", cpu.simd_targets}}},
            {"cards", cards_json()}};
}

struct InfoOptions {
    bool markdown = false;
    bool json = false;
};

void info_as_asked(const InfoOptions& options) {
    if (options.markdown) {
        say("{}", support_markdown());
    } else if (options.json) {
        say("{}\n", info_json().dump(2));
    } else {
        info();
    }
}

}  // namespace

void add_info(CLI::App& app) {
    CLI::App* command = app.add_subcommand("info", "Print the version, this machine, and what is supported");
    command->footer("The table asks the library about each combination; it needs no GPU.\nExample:\n  foveal info");
    const auto options = std::make_shared<InfoOptions>();
    CLI::Option* markdown = command->add_flag("--markdown", options->markdown,
                                              "Print the README's table of what is supported, and no more");
    command
        ->add_flag("--json", options->json,
                   "Print version, machine and the rates of the cards that are known as one JSON object")
        ->excludes(markdown);
    command->callback([options] { info_as_asked(*options); });
}

}  // namespace foveal_tool
