// Standard output: results alone where they are asked for there, and an error where it cannot be written.
#include <string>
#include <vector>

#include "tests/tool/run_fixture.hpp"

namespace foveal_testing {
namespace {

class CpuStandardOutput : public Cpu {
   protected:
    CpuStandardOutput() {
        const std::vector<float> values(3 * 8, 0.5f);
        const StoredTensor tensor = stored("F32", {1, 3, 1, 8}, values);
        Safetensors input;
        input.tensors = {{"q", tensor}, {"k", tensor}, {"v", tensor}};
        write_file(file("in"), input);
    }

    // What the command prints on standard output alone; the rest goes to the file "err".
    std::string printed(const std::string& arguments) const {
        const Result result = shell("\"$FOVEAL\" " + arguments + " 2> '" + file("err") + "'");
        EXPECT_STATUS(result, 0);
        return result.output;
    }
    std::string complaint() const {
        std::ifstream stream(file("err"));
        return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    }

    std::string run_to(const std::string& output) const {
        return "run '" + file("in") + "' --backend cpu -o '" + output + "'";
    }
};

TEST_F(CpuStandardOutput, JsonComesAlone) {
    for (const std::string path : {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
        const std::string json = " --backend cpu --json " + path;
        const nlohmann::json check = nlohmann::json::parse(printed("check s5 h1 -v" + json));
        EXPECT_EQ(check["passed"], 1);
        EXPECT_NE(complaint().find("1 passed"), std::string::npos) << complaint();
        const nlohmann::json bench = nlohmann::json::parse(printed("bench s5 h1 --rounds 1" + json));
        EXPECT_EQ(bench["rows"].size(), 1u);
        const nlohmann::json plan = nlohmann::json::parse(printed("plan s5 h1" + json));
        EXPECT_EQ(plan["plans"].size(), 1u);
    }
    for (const std::string command : {"info --json", "case s5 h1 --json", "suite --json", "suite seed --json"})
        EXPECT_FALSE(nlohmann::json::parse(printed(command)).empty()) << command;
    EXPECT_FALSE(fs::exists("-"));
}

TEST_F(CpuStandardOutput, JsonOfAFailedBenchIsNotThere) {
    const Result bench =
        shell("\"$FOVEAL\" bench s5 h1 d8 f32 --backend cpu --rounds 1 --json -  2> '" + file("err") + "'");
    EXPECT_STATUS(bench, 0);
    const Result broken = shell("export " + preloaded("libbroken_library.so") + " FOVEAL_TEST_BREAK=nan; \"$FOVEAL\" " +
                                "bench s5 h1 d8 f32 --backend cpu --rounds 1 --json -  2> '" + file("err") + "'");
    EXPECT_STATUS(broken, 1);
    EXPECT_EQ(broken.output, "");
    EXPECT_NE(complaint().find("wrong result"), std::string::npos) << complaint();
}

TEST_F(CpuStandardOutput, ResultsOfRunComeAlone) {
    EXPECT_STATUS(foveal(run_to(file("out"))), 0);
    const std::string expected = printed("--version") + shell("cat '" + file("out") + "'").output;
    for (const std::string path : {"-", "/dev/stdout", "/dev/fd/1"}) {
        // To a pipe, to a file, and behind what a file has already.
        EXPECT_EQ(printed("--version; \"$FOVEAL\" " + run_to(path)), expected) << path;
        EXPECT_STATUS(shell("(\"$FOVEAL\" --version; \"$FOVEAL\" " + run_to(path) + " 2> '" + file("err") + "') > '" +
                            file("got") + "'"),
                      0);
        EXPECT_EQ(shell("cat '" + file("got") + "'").output, expected) << path;
        EXPECT_NE(complaint().find("backend: cpu"), std::string::npos);
    }
    // Its own standard output by name: the same, and not a file of the name in its place.
    EXPECT_STATUS(shell("\"$FOVEAL\" --version > '" + file("got") + "'; \"$FOVEAL\" " + run_to(file("got")) + " >> '" +
                        file("got") + "'"),
                  0);
    EXPECT_EQ(shell("cat '" + file("got") + "'").output, expected);
    // Another descriptor is no name either.
    EXPECT_STATUS(shell("\"$FOVEAL\" " + run_to("/dev/fd/5") + " 5> '" + file("five") + "'"), 0);
    EXPECT_STATUS(foveal(run_to(file("out"))), 0);
    EXPECT_STATUS(shell("cmp '" + file("out") + "' '" + file("five") + "'"), 0);
}

TEST_F(CpuStandardOutput, AFullOneIsAnErrorOfEveryCommand) {
    const std::string out = file("out");
    std::string many_cases;  // whose text fills the buffer more than once, from two threads
    for (int i = 1; i <= 100; ++i) many_cases += " 's5 h1 d8 f32 seed" + std::to_string(i) + "'";
    for (const std::string& command : {std::string("info"),
                                       std::string("info --json"),
                                       std::string("info --markdown"),
                                       std::string("--help"),
                                       std::string("--version"),
                                       std::string("check --help"),
                                       std::string("plan --backend cpu s5 h1"),
                                       std::string("plan --backend cpu s5 h1 --json -"),
                                       std::string("check --backend cpu s5 h1"),
                                       std::string("check --backend cpu s5 h1 --json -"),
                                       "check --backend cpu -v -j 2" + many_cases,
                                       std::string("bench --backend cpu s5 h1 --rounds 1"),
                                       std::string("bench --backend cpu s5 h1 --rounds 1 --json -"),
                                       std::string("case s5 h1"),
                                       std::string("case s5 h1 --json"),
                                       std::string("suite"),
                                       std::string("suite --json"),
                                       run_to(out),
                                       run_to("-"),
                                       run_to("/dev/stdout")}) {
        const Result full = shell("\"$FOVEAL\" " + command + " 2>&1 > /dev/full");
        EXPECT_EQ(full.status, 1) << command << "\n" << full.output;
        EXPECT_TRUE(full.says("cannot write standard output: No space left on device") ||
                    full.says("cannot write '/dev/stdout': No space left on device"))
            << command << "\n"
            << full.output;
        const Result closed = shell("\"$FOVEAL\" " + command + " 2>&1 >&-");
        EXPECT_EQ(closed.status, 1) << command << "\n" << closed.output;
        EXPECT_SAYS(closed, "cannot write");
    }
    EXPECT_FALSE(fs::exists("-"));
}

// A descriptor that the caller has closed is not taken by a file, which would get what is printed.
TEST_F(CpuStandardOutput, AClosedOneSpoilsNoFile) {
    EXPECT_STATUS(foveal(run_to(file("expected"))), 0);
    for (const std::string closed : {">&-", "2>&-", "<&-", ">&- 2>&- <&-"}) {
        shell("\"$FOVEAL\" " + run_to(file("out")) + " " + closed);
        EXPECT_STATUS(shell("cmp '" + file("expected") + "' '" + file("out") + "'"), 0) << closed;
        fs::remove(file("out"));
    }
    // A file of two names is open while text is printed.
    std::ofstream(file("out")) << "old";
    fs::create_hard_link(file("out"), file("two"));
    shell("\"$FOVEAL\" check s5 h1 --backend cpu --json '" + file("out") + "' >&-");
    EXPECT_EQ(json("two")["passed"], 1);
}

}  // namespace
}  // namespace foveal_testing
