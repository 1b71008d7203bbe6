#include "progress.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "standard_output.hpp"

namespace foveal_tool {
namespace {

constexpr size_t kBarWidth = 24;

size_t terminal_columns() {
    winsize size{};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(size_t total) : total_(total), on_terminal_(isatty(STDERR_FILENO) == 1) {}

void Progress::show(size_t done, const std::string& what) {
    done_ = done;
    what_ = what;
    draw();
}

void Progress::print_line(const std::string& line) {
    clear();
    say("{}\n", line);
    flush_text();
    draw();
}

void Progress::clear() {
    if (!visible_) return;
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
    visible_ = false;
}

void Progress::draw() {
    if (!on_terminal_ || total_ == 0) return;
    const size_t filled = kBarWidth * std::min(done_, total_) / total_;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::string line = fmt::format("[{:#<{}}{:.<{}}] {}/{}  {:.0f} s  {}", "", filled, "", kBarWidth - filled, done_,
                                   total_, seconds, what_);
    line.resize(std::min(line.size(), terminal_columns() - 1));
    fmt::print(stderr, "\r\x1b[K{}", line);
    std::fflush(stderr);
    visible_ = true;
}

}  // namespace foveal_tool
