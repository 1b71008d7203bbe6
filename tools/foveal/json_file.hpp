// The JSON of check, bench and plan.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "foveal/foveal.h"
#include "output_file.hpp"

namespace foveal_tool {

// What every results file begins with: the suite, the machine, the commit of the code that was built, the date.
nlohmann::ordered_json file_heading(const std::string& suite, foveal_backend backend);

// --json FILE of a command that writes `what` there.
void add_json_option(CLI::App& command, std::optional<std::string>& path, const std::string& what);

// Opened before the work, so that a path that cannot be written is told then; text goes to standard error where the
// JSON goes to standard output. Both throw OutputError, and do nothing where none is asked for.
class JsonFile {
   public:
    explicit JsonFile(const std::optional<std::string>& path);
    void write(const nlohmann::ordered_json& json);

   private:
    std::optional<OutputFile> file_;
};

}  // namespace foveal_tool
