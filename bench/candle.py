#!/usr/bin/env python3
"""A forward through candle-foveal beside FlashAttention-3's kernel: the four problems of candle's pull request 3597.

    python3 bench/candle.py PROGRAM --commit $(git rev-parse HEAD) --write bench/results/h200

PROGRAM is bindings/rust/candle-foveal/examples/seed.rs, built with the feature `cuda` (bench/candle_cuda.sh); the
loader has to find libfoveal and CUDA's libraries for it. Right before it and right after it, compare.py's code times
FlashAttention-3 (the wheel fa3-fwd) and foveal through PyTorch on the same problems: interleaved, by CUDA events, and
each alone in blocks, by the clock; PROGRAM runs alone and times itself by events. FlashAttention-3's time is the lower
of the two, each the mean of before and after. Clocks and watts of PROGRAM are means over all that it does for a length,
filling of tensors included. Beside them stands what the pull request published of another H200. Exit status 1 if foveal
is wrong.
"""

import argparse
import gc
import re
import statistics
import subprocess
import sys
import threading
import time

import results_file
from tool import ToolError

CASE = "b128 s{} hq32 hk8 d128 bf16 causal"
PULL_REQUEST = "https://github.com/huggingface/candle/pull/3597"
# Microseconds of candle-flash-attn-v3 before and after, as its description says: an H200, CUDA 12.9, candle 0.10.2.
PUBLISHED = {128: (1603.7, 302.5), 1024: (12784.8, 2201.9), 2048: (28253.9, 6971.1), 8192: (183511.4, 94019.9)}


class SeedError(RuntimeError):
    """The program did not do all of its work, or FlashAttention-3 is not there."""


def row_in(line):
    """(s, microseconds) of a line of the program's table; None of any other line."""
    found = re.fullmatch(r"\| (\d+) \| ([\d.]+) \| [\d.]+ \|", line.strip())
    return (int(found[1]), float(found[2])) if found else None


def host_us_in(line):
    found = re.fullmatch(r"host time of a call: ([\d.]+) microseconds", line.strip())
    return float(found[1]) if found else None


def run_seed(program, telemetry, seconds):
    """{s: (microseconds, MHz, watts)}, and the host time of a call. A program that hangs is ended after `seconds`."""
    rows, host_us = {}, None
    telemetry.take()
    telemetry.on = True
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            if row := row_in(line):
                rows[row[0]] = (row[1], *telemetry.take())
            host_us = host_us_in(line) or host_us
        watchdog.cancel()
    telemetry.on = False
    if process.returncode or list(rows) != list(PUBLISHED) or host_us is None:
        raise SeedError(f"{program} ended with status {process.returncode} after the lengths {list(rows)}")
    return rows, host_us


def row_of(s, candle, runs):
    """candle: (microseconds, MHz, watts); runs: compare.py's rows of the case, before and after."""
    us, clock, watts = candle

    def means(name):
        return {
            "interleaved": round(statistics.fmean(run["us"][name] for run in runs), 2),
            "alone": round(statistics.fmean(run["alone_us"][name] for run in runs), 2),
        }

    fa3 = means("fa3")
    before, after = PUBLISHED[s]
    return {
        "case": CASE.format(s),
        "us": {"candle_foveal": us, "fa3": min(fa3.values()), "published_after": after, "published_before": before},
        "ratio": {"fa3": round(us / min(fa3.values()), 4)},
        "ratios": {how: round(us / them, 4) for how, them in fa3.items()},
        "fa3_us": fa3,
        "torch_foveal_us": means("foveal"),
        "sm_mhz": clock,
        "watts": watts,
        "runs": [
            {key: run[key] for key in ("us", "alone_us", "spread_pct", "rounds", "sm_mhz", "watts")} for run in runs
        ],
    }


def peers(device, options):
    """compare.py's rows of the four cases, and whether foveal was right; the device's memory is free afterwards."""
    import compare

    builds, rows, right = {"foveal": ""}, [], True
    for s in PUBLISHED:
        device.free()
        row, wrong = compare.measure(compare.case_of(CASE.format(s), compare.Case), builds, device, options)
        compare.print_row(row, wrong, builds, device.about["gpu"])
        if "fa3" not in row["us"]:
            raise SeedError("FlashAttention-3 could not be timed: is the wheel fa3-fwd installed?")
        rows.append(row)
        right = right and "foveal" not in wrong
    gc.collect()
    device.free()
    return rows, right


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="seed.rs, built")
    parser.add_argument("--commit", required=True, help="of the code that was built")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/candle_seed.json")
    parser.add_argument("--alone", default="1", metavar="SECONDS", help="how long a block is")
    parser.add_argument("--seconds", type=float, default=240, help="after which the program is ended")
    arguments = parser.parse_args()

    import compare
    from implementations import PEERS

    without = [word for name in PEERS["cuda"] if name != "fa3" for word in ("--without", name)]
    options = compare.parsed(["--device", "cuda", "--joules", "0", "--alone", arguments.alone, "--verbose", *without])
    device = compare.Gpu()
    before, right_before = peers(device, options)
    candle, host_us = run_seed(arguments.program, device.telemetry, arguments.seconds)
    after, right_after = peers(device, options)
    rows = [row_of(s, candle[s], runs) for s, *runs in zip(PUBLISHED, before, after, strict=True)]
    for row in rows:
        us, how = row["us"], ", ".join(f"{how} {ratio:.3f}" for how, ratio in row["ratios"].items())
        print(
            f"{row['case']}: {us['candle_foveal']:.1f} us through candle, {us['fa3']:.1f} us FlashAttention-3;", end=" "
        )
        print(f"ratio {row['ratio']['fa3']:.3f} ({how})")
    if arguments.write:
        document = {"suite": "candle_seed", **device.about, "commit": arguments.commit,
                    "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "rounds": options.rounds,
                    "published": PULL_REQUEST, "candle_call_us": host_us, "rows": rows}  # fmt: skip
        results_file.write(arguments.write, "candle_seed", document)
    return 0 if right_before and right_after else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SeedError, ToolError) as error:
        sys.exit(f"candle.py: {error}")
