// What the backends support, as a table in Markdown: the README's.
#pragma once

#include <string>

namespace foveal_tool {

// Asks foveal_supports() about each combination, so it is the same on every machine and in every build of this version.
std::string support_markdown();

}  // namespace foveal_tool
