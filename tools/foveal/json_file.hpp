// The results files of check and bench.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "foveal/foveal.h"

namespace foveal_tool {

// What every results file begins with: the suite, the machine, the commit of the code that was built, the date.
nlohmann::ordered_json file_heading(const std::string& suite, foveal_backend backend);

// Both throw Failure. The first is asked before the work whose results the second writes.
void require_writable(const std::string& path);
void write_json(const std::string& path, const nlohmann::ordered_json& json);

}  // namespace foveal_tool
