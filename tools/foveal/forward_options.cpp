#include "forward_options.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace foveal_tool {
namespace {

using Args = foveal_forward_args;
using Element = TensorOption::Element;

constexpr const char* kScoreShape = "[b, h_q, s_q, s_k], of size 1 where it is shared";

const TensorOption kTensors[] = {
    {"q", "[b, s_q, h_q, d], varlen [total_q, h_q, d]; BF16, F16, F32 or F8_E4M3", &Args::q, nullptr, Element::kOfQ,
     true},
    {"k", "[b, s_k, h_k, d], varlen [total_k, h_k, d]; q's type or F8_E4M3", &Args::k, nullptr, Element::kOfQ, true},
    {"v", "[b, s_k, h_k, d_v], varlen [total_k, h_k, d_v]; k's type", &Args::v, nullptr, Element::kOfQ, true},
    {"cu_seqlens_q", "I32 [b + 1]: the first row of each sequence, and the end; makes it varlen", &Args::cu_seqlens_q},
    {"cu_seqlens_k", "I32 [b + 1]: the same of k and v", &Args::cu_seqlens_k},
    {"cu_seqlens", "I32 [b + 1]: in place of both", &Args::cu_seqlens_q, &Args::cu_seqlens_k},
    {"seqused_q", "I32 [b]: only so many rows of each sequence take part", &Args::seqused_q},
    {"seqused_k", "I32 [b]: the same of k and v", &Args::seqused_k},
    {"alibi_slopes", "F32 [h_q] or [b, h_q]: a slope times the distance is taken from the score", &Args::alibi_slopes},
    {"sinks", "F32 [h_q]: a logit that has no value", &Args::sinks},
    {"bias", "added to the scores; q's type or F32", &Args::bias, nullptr, Element::kOfQOrF32},
    {"mask", "BOOL; false: the key is not seen", &Args::mask},
    {"q_descale", "F32 [b, h_k]: what q in F8_E4M3 is multiplied by", &Args::q_descale},
    {"k_descale", "F32 [b, h_k], or each row's own: what k in F8_E4M3 is multiplied by", &Args::k_descale},
    {"v_descale", "F32 [b, h_k], or each row's own: what v in F8_E4M3 is multiplied by", &Args::v_descale},
};

template <class Number>
struct NumberOption {
    const char* flag;
    const char* help;
    Number Args::*argument;
};

constexpr NumberOption<int64_t> kCounts[] = {
    {"--window-left", "Keys visible before the query's own (default: all)", &Args::window_left},
    {"--window-right", "Keys visible behind it (default: all)", &Args::window_right},
    {"--chunk", "Attention chunks: a query sees keys of its own so many positions alone (default, 0: none)",
     &Args::chunk},
};

constexpr NumberOption<float> kFactors[] = {
    {"--scale", "Factor on q.k (default: 1/sqrt(d))", &Args::scale},
    {"--softcap", "x becomes X tanh(x / X) (default, 0: none)", &Args::softcap},
    {"--dropout", "A weight is dropped with this probability; --dropout-state says which (default, 0: none)",
     &Args::dropout_p},
};

// Neither a fraction nor a number that 64 bits cannot hold; -1 would stand for no limit.
std::string count_error(const std::string& text) {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= 0) return "";
    return "'" + text + "' is no whole number from 0 to " + std::to_string(std::numeric_limits<int64_t>::max());
}

// A float is what the text says, or near: NaN stands for a default, and what underflows to 0 for none.
std::string float_error(const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0') return "'" + text + "' is no number";
    const float rounded = static_cast<float>(value);
    if (!std::isfinite(rounded) || (rounded == 0 && value != 0))
        return fmt::format("{} is no finite number of 32 bits", text);
    return "";
}

void add_numbers(CLI::App& command, foveal_forward_args& numbers) {
    for (const auto& [flag, help, argument] : kCounts)
        command.add_option(flag, numbers.*argument, help)->check(CLI::Validator(count_error, ""))->type_name("N");
    for (const auto& [flag, help, argument] : kFactors)
        command.add_option(flag, numbers.*argument, help)->check(CLI::Validator(float_error, ""))->type_name("X");
    command
        .add_flag_callback(
            "--causal", [&numbers] { numbers.window_right = 0; }, "No key behind the query's own: --window-right 0")
        ->excludes(command.get_option("--window-right"));
    command.add_flag_callback(
        "--top-left", [&numbers] { numbers.alignment = FOVEAL_TOP_LEFT; },
        "Align window and chunks at the first query and key, not at the last ones");
}

}  // namespace

std::string TensorOption::flag() const {
    std::string text = std::string("--") + name;
    std::replace(text.begin(), text.end(), '_', '-');
    return text;
}

std::span<const TensorOption> tensor_options() { return kTensors; }

std::string tensor_names() {
    std::string names;
    for (const TensorOption& option : kTensors) names += (names.empty() ? "" : ", ") + std::string(option.name);
    return names;
}

std::string tensor_help() {
    std::string lines;
    for (const TensorOption& option : kTensors) lines += fmt::format("  {:<13} {}\n", option.name, option.help);
    return lines + fmt::format("bias and mask: {}; dense alone.\n", kScoreShape);
}

void add_forward_options(CLI::App& command, ForwardOptions& options) {
    add_numbers(command, options.numbers);
    command.add_option("--dropout-state", options.dropout_state, "Of dropout: two whole numbers of 64 bits")
        ->expected(2)
        ->type_name("SEED OFFSET");
    command.add_flag("--lse", options.wants_lse, "Also compute the log-sum-exp");
    for (const TensorOption& option : kTensors)
        command
            .add_option(option.flag(), options.names[option.name], fmt::format("The tensor that is {}", option.name))
            ->type_name("NAME")
            ->group("Tensors of other names");
    command.add_option("--ignore", options.ignored, "Do not read this tensor of FILE (may be repeated)")
        ->type_name("NAME")
        ->expected(1)
        ->group("Tensors of other names");
    command.add_flag("--ignore-others", options.ignores_others, "Do not read any that is none of those above")
        ->group("Tensors of other names");
}

}  // namespace foveal_tool
