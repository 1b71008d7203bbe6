#!/usr/bin/env python3
"""Runs the whole GPU test list and writes its summary, tests.json.

    python3 bench/gpu_tests.py build/release/bin --commit $(git rev-parse HEAD) --write bench/results/h200

What runs: the suites of `foveal check`, the GoogleTest programs that need a device, and, where they are asked for,
compute-sanitizer's memcheck and racecheck over every head dimension with every option (--sanitizer), pytest (--pytest
FOLDER), candle-foveal's test programs, built with its feature `cuda` (--rust FOLDER), and one launch under ncu (--ncu).
Exit status 1 if anything failed.
"""

import argparse
import functools
import importlib.util
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import results_file

SUITES = ("correctness", "corner", "grid")
PROGRAMS = {
    "backward_tests": ["backward_tests", "--gtest_filter=*Sm90*"],
    "gpu_paged_grid": ["gpu_tests", "--gtest_filter=Eighths*"],
    "gpu_tests": ["gpu_tests", "--gtest_filter=-*Suite*:Eighths*"],
    "gpu_driver_calls_tests": ["gpu_driver_calls_tests"],
    "gpu_rescale_tests": ["gpu_rescale_tests"],
    "gpu_e4m3_tests": ["gpu_e4m3_tests"],
    "gpu_decode_tests": ["gpu_decode_tests", "--gtest_filter=-Seeds*"],
    "gpu_decode_cases": ["gpu_decode_tests", "--gtest_filter=Seeds*/?"],
    "first_call_captured": ["gpu_tests", "--gtest_filter=Gpu.TheFirstCallCanBeCaptured"],
    "merge_tests": ["merge_tests", "--gtest_filter=*Sm90*"],
    "append_tests": ["append_tests", "--gtest_filter=*Sm90*"],
    "cache_copy_tests": ["cache_copy_tests", "--gtest_filter=*Sm90*"],
    "candle_v3_tests": ["candle_v3_tests", "--gtest_filter=*Sm90*"],
    "score_tests": ["score_tests", "--gtest_filter=*Sm90*"],
}
HEAD_DIMS = ("d64", "d128", "d192 dv128", "d256", "d512")
OPTIONS = ("full", "causal", "causal lse", "left70 right3", "softcap30", "alibi causal", "sinks causal", "bias=bh",
           "mask=bh", "chunk100 causal", "causal dropout0.2")  # fmt: skip
GRADIENTS_OF = ("causal", "alibi causal", "sinks causal", "bias=bh", "causal dropout0.2")
E4M3_CACHES = [f"b2 sq150 sk300 used_k=7,300 hq8 hk2 {dims} bf16 kv_e4m3 descale {form}"
               for dims in ("d64", "d128", "d256") for form in ("page64", "page17 causal")]  # fmt: skip
DECODES = [f"b2 sq1 sk900 used_k=7,900 hq8 hk2 {dims} bf16 {keys} {form}" for dims in ("d64", "d128", "d256", "d512")
           for keys in ("", "kv_e4m3 descale") for form in ("page64", "page17 causal")
           if not (dims == "d512" and keys)]  # fmt: skip
LENGTHS = ("b2 sq300 sk330", "varlen qlens=200,3,0,129 klens=230,70,5,129")
PASSED_OVER = "b3 s700 h12 d128 bf16 full"  # by a warpgroup without rows: the last tile of every head
MANY_TILES = "b40 s260 h16 d64 bf16 causal"  # ten a CTA: more than the ring of their descriptions has slots
DEALT_OUT = "varlen qlens=2400,0,2600 klens=3000,5,3400 hq16 hk8 d128 bf16 full"  # by load (balance.cuh)
MISSING_HEAD = "b2 sq40 sk300 hq7 hk1 d128 bf16 causal sinks lse"  # of the eight whose rows share a tile
NCU_CASE = "b1 s16384 hq32 hk8 d128 bf16 causal"
NCU_METRICS = (
    "dram__bytes.sum", "gpu__time_duration.sum", "lts__t_bytes.sum", "sm__cycles_elapsed.max",
    "sm__inst_executed.sum", "sm__inst_executed_pipe_alu.sum", "sm__inst_executed_pipe_fma.sum",
    "sm__inst_executed_pipe_xu.sum", "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
)  # fmt: skip


def sanitizer_cases():
    """Dense-only options are left out of varlen."""
    return [DEALT_OUT, PASSED_OVER, MANY_TILES, MISSING_HEAD, *E4M3_CACHES] + [
        f"{lengths} hq4 hk2 {dims} bf16 {option}"
        for lengths in LENGTHS
        for dims in HEAD_DIMS
        for option in OPTIONS
        if not (lengths.startswith("varlen") and ("bias" in option or "mask" in option))
    ]


def run(command, seconds=120, environment=None):
    """Its exit status and output. A command that hangs is killed: a deadlocked kernel would eat the whole lease."""
    environment = os.environ | THIS_GPU.environment() | (environment or {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
        return done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as stopped:
        said = (stopped.stdout or b"").decode(errors="replace")
        return 124, f"{said}\ndid not end within {seconds} s"


class Gpus(threading.local):
    """Which GPU a thread's commands see: parts run side by side on as many as there are."""

    number = None

    def environment(self):
        return {} if self.number is None else {"CUDA_VISIBLE_DEVICES": str(self.number)}


THIS_GPU = Gpus()


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def check_suite(binaries, suite):
    begin = time.time()
    status, text = run([f"{binaries}/foveal", "check", "--backend", "sm90", "--jobs", "15", "--suite", suite])
    result = {"suite": suite, "passed": number(r"(\d+) passed", text), "failed": number(r"(\d+) failed", text),
              "unsupported": number(r"(\d+) unsupported", text), "seconds": round(time.time() - begin, 1)}  # fmt: skip
    return result, status == 0 and result["passed"] > 0, text


def gtest(binaries, command):
    status, text = run([f"{binaries}/{command[0]}", *command[1:]], 300)
    counts = {what.lower(): number(rf"\[\s*{what}\s*\] (\d+) test", text) for what in ("PASSED", "FAILED", "SKIPPED")}
    return counts, status == 0 and counts["passed"] > 0, text


def host_costs(text):
    pattern = r"host cost of a repeated call: ([\d.]+) us, of which an empty kernel's launch ([\d.]+) us \((.*)\)"
    return {case: {"call": float(us), "empty_kernel_launch": float(empty)} for us, empty, case in
            re.findall(pattern, text)}  # fmt: skip


def cases_of_memcheck():
    """Not of racecheck: what a warp's lanes read one of them releases after __syncwarp(), which it takes for a race."""
    gradients = [
        f"backward b2 sq130 sk200 hq4 hk2 {dims} bf16 {option}" for dims in HEAD_DIMS for option in GRADIENTS_OF
    ]
    return DECODES + gradients


def sanitizer(binaries, tool):
    cases = sanitizer_cases() + (cases_of_memcheck() if tool == "memcheck" else [])
    check = [f"{binaries}/foveal", "check", "--backend", "sm90", "--jobs", "1", *cases]
    status, text = run(["compute-sanitizer", "--tool", tool, *check], 300)
    found = re.search(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text)
    result = {"cases": number(r"(\d+) passed", text), "found": int(found[1]) if found else None}
    return result, status == 0 and result == {"cases": len(cases), "found": 0}, text


def pytest(folder):
    """What needs the GPU, in several processes where pytest-xdist is there: the rest runs without one as well."""
    shared = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *shared, "-rs", "-p", "no:cacheprovider", folder]
    # JAX takes three quarters of the memory otherwise, of which there is one for all processes.
    status, text = run(command, 300, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    counts = {what: number(rf"(\d+) {what}", text) for what in ("passed", "failed", "skipped")}
    # A package that is not there, or not the one that foveal was built for, takes a whole file of tests with it.
    counts["skips"] = sorted(set(re.findall(r"^SKIPPED \[\d+\] \S+: (.*)", text, re.MULTILINE)))
    return counts, status == 0 and counts["passed"] > 0, text


def rust(program):
    status, text = run([program, "--test-threads=1"], 300, {"FOVEAL_TEST_CUDA": "1"})
    counts = {what: number(rf"(\d+) {word}", text) for what, word in
              (("passed", "passed"), ("failed", "failed"), ("skipped", "ignored"))}  # fmt: skip
    return counts, status == 0 and counts["passed"] > 0, text


def ncu(binaries):
    command = ["ncu", "--clock-control", "none", "-k", "regex:forward", "--launch-skip", "3", "--launch-count", "1",
               "--csv", "--metrics", ",".join(NCU_METRICS)]  # fmt: skip
    _, text = run([*command, f"{binaries}/foveal", "bench", "--backend", "sm90", "--rounds", "2", NCU_CASE])
    values = {name: re.search(rf'"{re.escape(name)}","[^"]*","([\d.,]+)"', text) for name in NCU_METRICS}
    metrics = {name: float(found[1].replace(",", "")) for name, found in values.items() if found}
    return {"case": NCU_CASE, "command": " ".join(command), "metrics": metrics}, len(metrics) == len(NCU_METRICS), text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", help="folder of foveal and the test programs")
    parser.add_argument("--commit", required=True, help="of the code that was built")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/tests.json")
    parser.add_argument("--logs", metavar="FOLDER", help="write all that a failed part printed to FOLDER/PART.txt")
    parser.add_argument("--sanitizer", action="store_true")
    parser.add_argument("--ncu", action="store_true")
    parser.add_argument("--pytest", metavar="FOLDER")
    parser.add_argument("--rust", metavar="FOLDER")
    options = parser.parse_args()

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpus = run(query)[1].splitlines()
    gpu, driver = gpus[0].split(", ")
    document = {"gpu": gpu, "driver": driver, "commit": options.commit, "date": time.strftime("%Y-%m-%d"),
                "command": " ".join(sys.argv), "gpus": len(gpus)}  # fmt: skip
    parts = {suite: functools.partial(check_suite, options.binaries, suite) for suite in SUITES}
    if options.pytest:
        parts["pytest"] = functools.partial(pytest, options.pytest)
    parts |= {name: functools.partial(gtest, options.binaries, command) for name, command in PROGRAMS.items()}
    if options.rust:
        programs = sorted(path for path in pathlib.Path(options.rust).iterdir() if path.is_file())
        parts |= {f"candle_foveal_{path.name}": functools.partial(rust, str(path)) for path in programs}
    if options.sanitizer:
        parts |= {tool: functools.partial(sanitizer, options.binaries, tool) for tool in ("memcheck", "racecheck")}
    if options.ncu:
        parts["ncu"] = functools.partial(ncu, options.binaries)
    results, failures = {}, []
    lock, free = threading.Lock(), queue.SimpleQueue()
    for number_of_gpu in range(len(gpus)):
        free.put(number_of_gpu)

    def save():  # after each part: what a lease that ends early has shown is not lost
        of_suites = {"check": [results[suite] for suite in SUITES if suite in results]}
        rest = {name: results[name] for name in [*parts, "host_us"] if name in results and name not in SUITES}
        if options.write:
            results_file.write(options.write, "tests", document | {"failed": failures} | of_suites | rest)

    def take(name, part):
        if len(gpus) > 1:
            THIS_GPU.number = free.get()
        result, ok, text = part()
        if len(gpus) > 1:
            free.put(THIS_GPU.number)
        with lock:
            results[name] = result
            if name == "gpu_tests":
                results["host_us"] = host_costs(text)
            print(f"{'ok    ' if ok else 'FAILED'} {name}: {result}", flush=True)
            if not ok:
                failures.append(name)
                if options.logs:
                    pathlib.Path(options.logs, f"{name}.txt").write_text(text)
                print("\n".join(text.splitlines()[-30:]), flush=True)
            save()

    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(take, parts, parts.values()))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
