// What holds for every command of the tool; info, plan, and the choice of a backend.
#include <string>

#include "foveal/foveal.h"
#include "tests/tool/tool_fixture.hpp"

namespace foveal_testing {
namespace {

TEST_F(Cpu, HelpNamesEveryCommandAndGivesAnExample) {
    const Result help = foveal("--help");
    EXPECT_STATUS(help, 0);
    for (const std::string command : {"info", "plan", "check", "bench", "run", "case", "suite"}) {
        EXPECT_SAYS(help, "\n  " + command + " ");
        const Result of_command = foveal(command + " --help");
        EXPECT_STATUS(of_command, 0);
        EXPECT_SAYS(of_command, "Example");
        EXPECT_SAYS(of_command, "  foveal " + command);
    }
    const Result version = foveal("--version");
    EXPECT_STATUS(version, 0);
    EXPECT_EQ(version.output, std::string("foveal ") + foveal_version() + "\n");
}

TEST_F(Cpu, UsageErrorsExitWith2) {
    for (const char* arguments : {"",
                                  "frobnicate",
                                  "--frobnicate",
                                  "check --suite nope",
                                  "check --backend tpu",
                                  "check b2 sq113 frob",
                                  "check \"s5 s6\"",
                                  "check --suite corner s5",
                                  "check s5 --jobs 0",
                                  "plan",
                                  "bench --rounds 0 s5",
                                  "bench s5 --rounds x",
                                  "run",
                                  "run in.safetensors",
                                  "run a -o b --causal --window-right 3",
                                  "run a -o b --window-left -2",
                                  "check --suite seed",
                                  "check merge s5 h1",
                                  "bench --suite correctness",
                                  "bench merge s5 h1 causal",
                                  "case",
                                  "case s5",
                                  "case s5 h1 frob --json",
                                  "case \"s5 h1\" \"s6 h1\"",
                                  "suite nope",
                                  "info --json --markdown",
                                  "run a -o b --scale inf",
                                  "run a -o b --scale nan",
                                  "run a b -o c",
                                  "run a -o b --dtype f64"}) {
        const Result result = foveal(arguments);
        EXPECT_EQ(result.status, 2) << "foveal " << arguments << "\n" << result.output;
        EXPECT_FALSE(result.output.empty()) << arguments;
    }
}

TEST_F(Cpu, UsageErrorsNameWhatIsWrong) {
    const Result command = foveal("frobnicate --json -");
    EXPECT_SAYS(command, "'frobnicate' is no command; there are info, plan, check, bench, run, case, suite");
    EXPECT_SAYS(foveal("--frobnicate"), "'--frobnicate'");
    EXPECT_SAYS(foveal("plan s5 h1 --frobnicate"), "--frobnicate");
    for (const std::string command_of_cases : {"check", "plan", "bench", "case"}) {
        const Result token = foveal(command_of_cases + " b2 sq113 x128");
        EXPECT_STATUS(token, 2);
        EXPECT_SAYS(token, "'x128': unknown; `foveal check --help` lists the tokens");
    }
    const Result page = foveal("check --help");
    for (const char* token : {"chunk128", "softcap30", "bias=bh", "klens=", "bf16 | f16 | f32"})
        EXPECT_SAYS(page, token);
    EXPECT_SAYS(foveal("bench merge s5 h1 causal"), "'causal': has no meaning in a merge; `foveal bench --help`");
    EXPECT_SAYS(foveal("bench --help"), "merge parts4");
}

TEST_F(Cpu, AnEnvironmentThatIsWrongIsNamed) {
    for (const char* arguments : {"check s5 h1", "plan s5 h1", "bench s5 h1", "suite corner", "run in -o out"}) {
        const Result backend = foveal(arguments, "FOVEAL_BACKEND=tpu");
        EXPECT_STATUS(backend, 2);
        EXPECT_SAYS(backend, "the environment variable FOVEAL_BACKEND is \"tpu\"; known are cpu, sm90 and auto");
    }
    EXPECT_STATUS(foveal("check s5 h1 --backend cpu", "FOVEAL_BACKEND=tpu"), 0);
    EXPECT_STATUS(foveal("check s5 h1", "FOVEAL_BACKEND="), 0);
    const Result threads = foveal("check s5 h1 --backend cpu", "FOVEAL_NUM_THREADS=many");
    EXPECT_STATUS(threads, 1);
    EXPECT_SAYS(threads, "FOVEAL_NUM_THREADS is 'many'");
    if (has_sm90_device()) return;
    const Result sm90 = foveal("check s5 h1", "FOVEAL_BACKEND=sm90");
    EXPECT_STATUS(sm90, 1);
    EXPECT_SAYS(sm90, "the sm90 backend cannot run here: ");
    EXPECT_SAYS(sm90, "FOVEAL_BACKEND is \"sm90\"");
}

TEST_F(Cpu, InfoTellsVersionMachineAndSupport) {
    const Result info = foveal("info");
    EXPECT_STATUS(info, 0);
    EXPECT_SAYS(info, std::string("foveal     ") + foveal_version());
    EXPECT_SAYS(info, "\nGPU ");
    EXPECT_SAYS(info, "\nCPU ");
    EXPECT_SAYS(info, "\nSIMD ");
    EXPECT_SAYS(info, "  cpu   bf16  dense, varlen");
    EXPECT_EQ(info.says("sm90  not in this build"), foveal_backend_built(FOVEAL_BACKEND_SM90) == 0) << info.output;
    const Result table = foveal("info --markdown");
    EXPECT_STATUS(table, 0);
    EXPECT_EQ(table.output.rfind("| | CPU | Hopper (sm_90a) |\n|---|---|---|\n", 0), 0u) << table.output;
}

// What bench/bounds.py reads.
TEST_F(Cpu, InfoAsJsonHasTheRatesOfTheCards) {
    const Result result = foveal("info --json");
    EXPECT_STATUS(result, 0);
    const nlohmann::json info = nlohmann::json::parse(result.output);
    EXPECT_EQ(info["version"], foveal_version());
    EXPECT_EQ(info["gpu"].is_null() || info["gpu"]["name"].is_string(), true);
    EXPECT_GE(info["cpu"]["threads"], 1);
    const auto card = [&info](const std::string& name) {
        for (const nlohmann::json& one : info["cards"])
            if (one["name"] == name) return one;
        return nlohmann::json();
    };
    EXPECT_EQ(card("NVIDIA H200")["sustained_flops_per_second"], 791e12);
    EXPECT_EQ(card("NVIDIA H200")["sustained_copy_bytes_per_second"], 4.27e12);
    EXPECT_EQ(card("NVIDIA H100 80GB HBM3")["dram_bytes_per_second"], 3.35e12);
    EXPECT_TRUE(card("NVIDIA H100 80GB HBM3")["sustained_read_bytes_per_second"].is_null()) << "nobody has measured it";
}

TEST_F(Cpu, PlanNeedsNoGpu) {
    const Result cpu = foveal("plan --backend cpu b2 s100 h4 f32 causal");
    EXPECT_STATUS(cpu, 0);
    EXPECT_SAYS(cpu, "workspace");
    const Result sm90 = foveal("plan --backend sm90 b128 s1024 hq32 hk8 d128 bf16 causal");
    EXPECT_STATUS(sm90, 0);
    for (const char* part : {"kernel", "tile", "grid", "shared", "registers", "workspace  0 bytes", "bound"})
        EXPECT_SAYS(sm90, part);
    const Result refused = foveal("plan --backend sm90 b1 s64 h4 d100 bf16");
    EXPECT_STATUS(refused, 1);
    EXPECT_SAYS(refused, "FOVEAL_UNSUPPORTED");
}

TEST_F(Cpu, PlanAsJsonHasItsLinesByName) {
    EXPECT_STATUS(foveal("plan --backend sm90 'b2 s100 hq4 hk2 d64 bf16 causal' 's5 h1 softcap2 sinks' --json " +
                         file("plan.json")),
                  0);
    const nlohmann::json plan = json("plan.json");
    EXPECT_EQ(plan["backend"], "sm90");
    EXPECT_TRUE(plan["planned_for"].is_string());
    ASSERT_EQ(plan["plans"].size(), 2u);
    EXPECT_EQ(plan["plans"][0]["case"], "b2 s100 hq4 hk2 d64 bf16 causal");
    const nlohmann::json& lines = plan["plans"][0]["plan"];
    for (const char* name :
         {"problem", "mask", "kernel", "tile", "grid", "shared", "registers", "order", "workspace", "bound"})
        EXPECT_TRUE(lines.contains(name)) << name << lines.dump(2);
    EXPECT_EQ(lines["workspace"], "0 bytes");
    EXPECT_NE(lines["tile"].get<std::string>().find("\nrows of "), std::string::npos) << "a line that goes on";
    EXPECT_EQ(plan["plans"][1]["plan"]["scores"], "softcap 2 sinks");
}

TEST_F(Cpu, AutoSaysWhichBackendItTook) {
    const Result plain = foveal("check s5 h1");
    EXPECT_STATUS(plain, 0);
    EXPECT_SAYS(plain, has_sm90_device() ? "backend: sm90 on" : "backend: cpu (auto: ");
    EXPECT_SAYS(foveal("check s5 h1", "FOVEAL_BACKEND=cpu"), "backend: cpu\n");
    if (has_sm90_device()) return;
    for (const char* arguments : {"check s5 h1 --backend sm90", "bench s5 h1 --backend sm90"}) {
        const Result forced = foveal(arguments);
        EXPECT_STATUS(forced, 1);
        EXPECT_SAYS(forced, "the sm90 backend cannot run here: ");
    }
}

}  // namespace
}  // namespace foveal_testing
