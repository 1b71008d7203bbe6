// The options of the forward on a command line: for each tensor its name in a file and its flag, for each number its
// flag, and what the help says. What foveal_forward_args gains gets its row in forward_options.cpp, and nowhere else.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "foveal/foveal.h"

namespace foveal_tool {

using ForwardTensor = foveal_tensor foveal_forward_args::*;

// A tensor that the forward reads.
struct TensorOption {
    enum class Element { kOfQ, kOfQOrF32, kItsOwn };

    const char* name;  // in the file, unless its flag says another
    const char* help;  // type, shape, meaning
    ForwardTensor argument;
    ForwardTensor second_argument = nullptr;  // where one tensor of the file stands for two
    Element element = Element::kItsOwn;
    bool required = false;

    std::string flag() const;  // "--seqused-q"
};

std::span<const TensorOption> tensor_options();
std::string tensor_names();  // "q, k, v, ..."
std::string tensor_help();   // a line for each

struct ForwardOptions {
    ForwardOptions() { foveal_forward_args_init(&numbers); }

    foveal_forward_args numbers;                              // what is no tensor
    std::vector<uint64_t> dropout_state;                      // [2], or empty
    bool wants_lse = false;                                   // an output of its own
    std::map<std::string, std::optional<std::string>> names;  // of a TensorOption: the tensor that its flag names
    std::vector<std::string> ignored;                         // tensors of the file that are not read
    bool ignores_others = false;                              // nor are those that are no option of the forward
};

// Adds them all. options: must live as long as the command.
void add_forward_options(CLI::App& command, ForwardOptions& options);

}  // namespace foveal_tool
