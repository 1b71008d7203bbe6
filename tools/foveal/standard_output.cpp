#include "standard_output.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

namespace foveal_tool {
namespace {

bool reserved_for_results = false;
int first_error = 0;  // of standard output, an errno

FILE* text_stream() { return reserved_for_results ? stderr : stdout; }

void note_error() {
    if (!reserved_for_results && first_error == 0) first_error = errno;
}

}  // namespace

void occupy_standard_descriptors() {
    // Opened the wrong way round, so that the use of what was closed still fails.
    for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(descriptor, F_GETFD) >= 0) continue;
        if (open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;  // the lowest that is free
    }
}

void reserve_standard_output_for_results() { reserved_for_results = true; }

void print_text(std::string_view text) noexcept {
    if (std::fwrite(text.data(), 1, text.size(), text_stream()) != text.size()) note_error();
}

void flush_text() noexcept {
    if (std::fflush(text_stream()) != 0) note_error();
}

std::string finish_standard_output() {
    if (std::fclose(stdout) != 0 && first_error == 0) first_error = errno;
    return first_error == 0 ? "" : "cannot write standard output: " + std::generic_category().message(first_error);
}

}  // namespace foveal_tool
