// A progress bar on a terminal's standard error; silent elsewhere.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace foveal_tool {

class Progress {
   public:
    explicit Progress(size_t total);
    ~Progress() { clear(); }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    // done of the total; `what` is being worked on.
    void show(size_t done, const std::string& what);
    // A line of text, above the bar.
    void print_line(const std::string& line);

   private:
    void clear();
    void draw();

    size_t total_;
    size_t done_ = 0;
    std::string what_;
    bool visible_ = false;  // is the bar on the screen now?
    const bool on_terminal_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace foveal_tool
