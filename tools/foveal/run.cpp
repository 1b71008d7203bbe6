// foveal run: attention over the tensors of a safetensors file.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "attention_file.hpp"
#include "backend_choice.hpp"
#include "commands.hpp"
#include "safetensors.hpp"
#include "tensor_memory.hpp"

namespace foveal_tool {
namespace {

struct RunOptions {
    std::string input, output, backend;
    bool causal = false;
    bool top_left = false;
    bool lse = false;
    std::optional<int64_t> window_left, window_right;
    std::optional<float> scale;
};

void describe_outputs(const RunOptions& options, foveal_forward_args& args) {
    const auto shape_of = [](const foveal_tensor& t) { return std::vector<int64_t>(t.shape, t.shape + t.rank); };
    std::vector<int64_t> shape = shape_of(args.q);
    shape.back() = args.v.shape[std::max(args.v.rank - 1, 0)];
    args.out = packed_tensor(args.q.dtype, shape);
    if (!options.lse || args.q.rank < 3) return;
    const int64_t* q = args.q.shape;
    args.lse = packed_tensor(
        FOVEAL_F32, args.q.rank == 4 ? std::vector<int64_t>{q[0], q[2], q[1]} : std::vector<int64_t>{q[1], q[0]});
}

void set_options(const RunOptions& options, foveal_forward_args& args) {
    if (options.scale) args.scale = *options.scale;
    if (options.window_left) args.window_left = *options.window_left;
    if (options.window_right) args.window_right = *options.window_right;
    if (options.causal) args.window_right = 0;
    if (options.top_left) args.alignment = FOVEAL_TOP_LEFT;
}

void require_ok(foveal_status status) {
    if (status != FOVEAL_OK) throw Failure(fmt::format("{}: {}", foveal_status_name(status), foveal_last_error()));
}

size_t bytes_of(const foveal_tensor& tensor) {
    size_t bytes = tensor.dtype == FOVEAL_F32 || tensor.dtype == FOVEAL_I32 ? 4 : 2;
    for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
    return bytes;
}

// Rows past seqused are not written by the library: they keep these zeros.
TensorMemory place_output(foveal_backend backend, foveal_tensor& tensor) {
    TensorMemory placed(backend, bytes_of(tensor));
    tensor.data = placed.data();
    return placed;
}

StoredTensor stored(const foveal_tensor& tensor, TensorMemory& placed) {
    return {safetensors_dtype(tensor.dtype), {tensor.shape, tensor.shape + tensor.rank}, placed.fetch()};
}

void compute(const Safetensors& file, foveal_forward_args& args, const std::string& output) {
    std::vector<TensorMemory> inputs;
    for (const auto& [name, tensor] : file.tensors) {
        inputs.emplace_back(args.backend, tensor.bytes, safetensors_element_bytes(tensor.dtype));
        argument_named(args, name)->data = inputs.back().data();
    }
    use_lengths_for_both(file, args);
    TensorMemory out = place_output(args.backend, args.out);
    std::optional<TensorMemory> lse;
    if (args.lse.rank != 0) lse = place_output(args.backend, args.lse);
    require_ok(foveal_forward(&args, nullptr));

    Safetensors result;
    result.metadata["producer"] = std::string("foveal ") + foveal_version();
    result.tensors["out"] = stored(args.out, out);
    if (lse) result.tensors["lse"] = stored(args.lse, *lse);
    write_safetensors(output, result);
    for (const auto& [name, tensor] : result.tensors) {
        fmt::print("{} [{}] {}\n", name, fmt::join(tensor.shape, ", "), tensor.dtype);
    }
}

void run(const RunOptions& options) {
    if (options.scale && !std::isfinite(*options.scale)) throw UsageError("--scale must be finite");
    const BackendChoice choice = choose_backend(options.backend);
    const MappedFile bytes(options.input);
    const Safetensors file = read_safetensors(bytes.bytes());
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = choice.backend;
    describe_inputs(file, args);
    describe_outputs(options, args);
    set_options(options, args);
    require_ok(foveal_supports(&args));
    check_sequence_lengths(file, args);
    fmt::print("backend: {}\n", choice.description);
    try {
        compute(file, args, options.output);
    } catch (const std::bad_alloc&) {
        throw Failure("not enough memory for the result");
    }
}

}  // namespace

void add_run(CLI::App& app) {
    CLI::App* command = app.add_subcommand("run", "Compute attention over the tensors of a safetensors file");
    command->footer(
        "FILE holds q, k and v in BF16, F16 or F32:\n"
        "  dense   q [b, s_q, h_q, d]   k [b, s_k, h_k, d]   v [b, s_k, h_k, d_v]\n"
        "  varlen  q [total_q, h_q, d]  k [total_k, h_k, d]  v [total_k, h_k, d_v], with cu_seqlens_q and "
        "cu_seqlens_k\n"
        "          (or one cu_seqlens for both), I32 [b + 1]\n"
        "  and, if rows are unused, seqused_q and seqused_k, I32 [b]; results of unused rows are 0.\n"
        "OUT gets `out`, of q's type, and with --lse `lse`, F32 [b, h_q, s_q] or [h_q, total_q].\n"
        "Key j is visible to query i if i + off - left <= j <= i + off + right; off is s_k - s_q, or 0 with "
        "--top-left.\n"
        "Example:\n  foveal run qkv.safetensors -o out.safetensors --causal --lse");
    const auto options = std::make_shared<RunOptions>();
    command->add_option("FILE", options->input, "The inputs")->required()->type_name("");
    command->add_option("-o,--output", options->output, "Where the results go")->required()->type_name("OUT");
    CLI::Option* causal =
        command->add_flag("--causal", options->causal, "No key behind the query's own: --window-right 0");
    command->add_option("--window-left", options->window_left, "Keys visible before the query's own (default: all)")
        ->check(CLI::NonNegativeNumber)
        ->type_name("N");
    command->add_option("--window-right", options->window_right, "Keys visible behind it (default: all)")
        ->check(CLI::NonNegativeNumber)
        ->type_name("N")
        ->excludes(causal);
    command->add_flag("--top-left", options->top_left,
                      "Align the mask at the first query and key, not at the last ones");
    command->add_option("--scale", options->scale, "Factor on q.k (default: 1/sqrt(d))")->type_name("X");
    command->add_flag("--lse", options->lse, "Also compute the log-sum-exp");
    add_backend_option(*command, options->backend);
    command->callback([options] { run(*options); });
}

}  // namespace foveal_tool
