// What the tool prints. Standard output that cannot be written is an error of every command, found at its end.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace foveal_tool {

// First of all: a descriptor among 0, 1 and 2 that the caller has closed is occupied, so that no file that is opened
// later gets its number and, with it, what is printed.
void occupy_standard_descriptors();

// From now on standard output carries results alone: text goes to standard error.
void reserve_standard_output_for_results();

// Never throws: what could not be written is told by finish_standard_output().
void print_text(std::string_view text) noexcept;
void flush_text() noexcept;

template <class... Args>
void say(fmt::format_string<Args...> format, Args&&... args) {
    print_text(fmt::format(format, std::forward<Args>(args)...));
}

// Closes standard output. "", or why not all that was printed there has been written.
std::string finish_standard_output();

}  // namespace foveal_tool
