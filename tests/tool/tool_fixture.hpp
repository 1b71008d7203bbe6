// The command-line tool as a user runs it: a process, its exit status, what it prints and writes. Tests named Cpu need
// no GPU; those named Sm90 are skipped without one.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "tests/support/case_data.hpp"

namespace foveal_testing {

namespace fs = std::filesystem;

inline fs::path binary_directory() { return fs::read_symlink("/proc/self/exe").parent_path(); }

struct Result {
    int status = -1;
    std::string output;  // standard output and standard error

    bool says(const std::string& text) const { return output.find(text) != std::string::npos; }
};

// Commands of a shell in which $FOVEAL is the tool.
inline Result shell(const std::string& commands) {
    const std::string program = (binary_directory() / "foveal").string();
    // A library may be preloaded, also before AddressSanitizer's.
    const std::string command = "exec 2>&1 </dev/null; unset FOVEAL_BACKEND; FOVEAL='" + program +
                                "'; export ASAN_OPTIONS=$ASAN_OPTIONS:verify_asan_link_order=0; " + commands;
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("popen: " + command);
    Result result;
    std::array<char, 4096> buffer;
    while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) result.output.append(buffer.data(), n);
    const int status = pclose(pipe);
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return result;
}

// environment: "NAME=value ..." for the tool alone.
inline Result foveal(const std::string& arguments, const std::string& environment = "") {
    return shell("exec env " + environment + " \"$FOVEAL\" " + arguments);
}

// For environment: a library of the tests that is loaded before the tool's own.
inline std::string preloaded(const std::string& name) {
    return "LD_PRELOAD='" + (binary_directory() / "../lib" / name).string() + "'";
}

#define EXPECT_STATUS(result, expected) EXPECT_EQ((result).status, expected) << (result).output
#define EXPECT_SAYS(result, text) \
    EXPECT_TRUE((result).says(text)) << "looked for: " << (text) << "\nin: " << (result).output

class Tool : public testing::Test {
   protected:
    Tool() {
        directory_ = fs::path(testing::TempDir()) / ("foveal_tool_test." + std::to_string(getpid()));
        fs::create_directories(directory_);
    }
    ~Tool() override { fs::remove_all(directory_); }

    std::string file(const std::string& name) const { return (directory_ / name).string(); }

    nlohmann::json json(const std::string& name) const {
        std::ifstream stream(file(name));
        return nlohmann::json::parse(stream);
    }

   private:
    fs::path directory_;
};

// Tests that run on either backend.
class Cpu : public Tool {
   protected:
    static constexpr const char* kBackend = "cpu";
};
class Sm90 : public Tool {
   protected:
    static constexpr const char* kBackend = "sm90";
    void SetUp() override {
        if (!has_sm90_device()) GTEST_SKIP() << "SKIPPED: no sm90 device";
    }
};

inline std::string on(const std::string& backend) { return " --backend " + backend + " "; }

}  // namespace foveal_testing
