// foveal run: attention over the tensors of a safetensors file.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "attention_inputs.hpp"
#include "backend_choice.hpp"
#include "commands.hpp"
#include "element_conversion.hpp"
#include "forward_options.hpp"
#include "output_file.hpp"
#include "safetensors.hpp"
#include "standard_output.hpp"
#include "tensor_memory.hpp"

namespace foveal_tool {
namespace {

struct RunOptions {
    std::string input, output, backend;
    ForwardOptions forward;
    std::optional<std::string> dtype, out_dtype;
    bool overwrites_input = false;
};

std::optional<foveal_dtype> element_type(const std::optional<std::string>& name) {
    return name ? std::optional(element_type_named(*name)) : std::nullopt;
}

// out_dtype: as which the file is to have it.
void describe_outputs(bool wants_lse, std::optional<foveal_dtype> out_dtype, foveal_forward_args& args) {
    const auto shape_of = [](const foveal_tensor& t) { return std::vector<int64_t>(t.shape, t.shape + t.rank); };
    std::vector<int64_t> shape = shape_of(args.q);
    shape.back() = args.v.shape[std::max(args.v.rank - 1, 0)];
    const foveal_dtype of_e4m3 = out_dtype == FOVEAL_F16 ? FOVEAL_F16 : FOVEAL_BF16;
    args.out = packed_tensor(args.q.dtype == FOVEAL_E4M3 ? of_e4m3 : args.q.dtype, shape);
    if (!wants_lse || args.q.rank < 3) return;
    const int64_t* q = args.q.shape;
    args.lse = packed_tensor(
        FOVEAL_F32, args.q.rank == 4 ? std::vector<int64_t>{q[0], q[2], q[1]} : std::vector<int64_t>{q[1], q[0]});
}

void require_ok(foveal_status status) {
    if (status != FOVEAL_OK) throw Failure(fmt::format("{}: {}", foveal_status_name(status), foveal_last_error()));
}

size_t bytes_of(const foveal_tensor& tensor) {
    size_t bytes = safetensors_element_bytes(safetensors_dtype(tensor.dtype));
    for (int i = 0; i < tensor.rank; ++i) bytes *= static_cast<size_t>(tensor.shape[i]);
    return bytes;
}

// Rows past seqused are not written by the library: they see no key, so out keeps these zeros, lse gets -inf.
TensorMemory place_output(foveal_backend backend, foveal_tensor& tensor) {
    TensorMemory placed(backend, bytes_of(tensor));
    tensor.data = placed.data();
    return placed;
}

TensorMemory place_lse(foveal_backend backend, foveal_tensor& tensor) {
    TensorMemory placed = place_output(backend, tensor);
    const std::vector<float> empty(bytes_of(tensor) / sizeof(float), -std::numeric_limits<float>::infinity());
    placed.fill(std::as_bytes(std::span(empty)));
    return placed;
}

StoredTensor stored(const foveal_tensor& tensor, foveal_dtype dtype, std::span<const std::byte> bytes) {
    return {safetensors_dtype(dtype), {tensor.shape, tensor.shape + tensor.rank}, bytes};
}

void compute(AttentionInputs& inputs, const RunOptions& options, foveal_forward_args& args, OutputFile& output) {
    const std::optional<foveal_dtype> out_dtype = element_type(options.out_dtype);
    inputs.place(args);
    std::optional<TensorMemory> state;
    if (const std::vector<uint64_t>& numbers = options.forward.dropout_state; !numbers.empty()) {
        state.emplace(args.backend, numbers.size() * sizeof(uint64_t)).fill(std::as_bytes(std::span(numbers)));
        args.dropout_state = static_cast<const uint64_t*>(state->data());
    }
    TensorMemory out = place_output(args.backend, args.out);
    std::optional<TensorMemory> lse;
    if (args.lse.rank != 0) lse = place_lse(args.backend, args.lse);
    require_ok(foveal_forward(&args, nullptr));

    std::vector<std::byte> other_type;
    std::span<const std::byte> out_bytes = out.fetch();
    const foveal_dtype stored_dtype = out_dtype.value_or(args.out.dtype);
    if (stored_dtype != args.out.dtype) out_bytes = other_type = converted(out_bytes, args.out.dtype, stored_dtype);
    Safetensors result;
    result.metadata["producer"] = std::string("foveal ") + foveal_version();
    result.tensors["out"] = stored(args.out, stored_dtype, out_bytes);
    if (lse) result.tensors["lse"] = stored(args.lse, FOVEAL_F32, lse->fetch());
    write_safetensors(output, result);
    for (const auto& [name, tensor] : result.tensors)
        say("{} [{}] {}\n", name, fmt::join(tensor.shape, ", "), tensor.dtype);
}

void run(const RunOptions& options) {
    const BackendChoice choice = choose_backend(options.backend);
    const MappedFile bytes(options.input);
    const Safetensors file = read_safetensors(bytes.bytes());
    AttentionInputs inputs(file, options.forward, element_type(options.dtype));
    foveal_forward_args args = options.forward.numbers;
    args.backend = choice.backend;
    inputs.describe(args);
    describe_outputs(options.forward.wants_lse, element_type(options.out_dtype), args);
    require_ok(foveal_supports(&args));
    inputs.check_lengths(args);

    OutputFile output(options.output);
    if (output.is_same_file(options.input) && !options.overwrites_input)
        throw Failure(
            fmt::format("'{}' is the input '{}'; --overwrite-input replaces it", options.output, options.input));
    if (output.is_standard_output()) reserve_standard_output_for_results();
    say("backend: {}\n", choice.description);
    compute(inputs, options, args, output);
}

void run_in_memory(const RunOptions& options) {
    try {
        run(options);
    } catch (const std::bad_alloc&) {
        throw Failure("not enough memory");
    }
}

std::string footer() {
    return "FILE holds q, k and v, and what else is wanted:\n" + tensor_help() +
           "OUT gets `out`, of q's type, and with --lse `lse`, F32 [b, h_q, s_q] or [h_q, total_q]. Rows behind\n"
           "seqused_q are 0 there, and -inf in lse. A file gets all of it or keeps what it had; links are followed,\n"
           "devices and FIFOs written to; -: standard output, and text goes to standard error.\n"
           "Key j is visible to query i if i + off - left <= j <= i + off + right; off is s_k - s_q, or 0 with\n"
           "--top-left.\n"
           "Example:\n  foveal run qkv.safetensors -o out.safetensors --causal --lse";
}

}  // namespace

void add_run(CLI::App& app) {
    CLI::App* command = app.add_subcommand("run", "Compute attention over the tensors of a safetensors file");
    command->footer(footer());
    const auto options = std::make_shared<RunOptions>();
    command->add_option("FILE", options->input, "The inputs")->required()->type_name("");
    command->add_option("-o,--output", options->output, "Where the results go")->required()->type_name("OUT");
    command->add_flag("--overwrite-input", options->overwrites_input, "OUT may be FILE");
    add_forward_options(*command, options->forward);
    command->add_option("--dtype", options->dtype, "Compute in this type: q, k and v are rounded to it")
        ->check(CLI::IsMember(kElementTypes))
        ->type_name("TYPE");
    command
        ->add_option("--out-dtype", options->out_dtype, "Write `out` in this type, rounded once more if it is narrower")
        ->check(CLI::IsMember(kElementTypes))
        ->type_name("TYPE");
    add_backend_option(*command, options->backend);
    command->callback([options] { run_in_memory(*options); });
}

}  // namespace foveal_tool
