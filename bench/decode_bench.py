#!/usr/bin/env python3
"""Runs decode_bench, L2 warm and cold, and writes decode_bench.json: the sm90 decode beside its copies alone, and over
caches in e4m3 beside that over bf16.

    python3 bench/decode_bench.py build/release/bin/decode_bench --commit HASH --write bench/results/h200

`load` is the same kernel without its arithmetic. Exit status 1 if a row differs split and unsplit, or a run fails.
"""

import argparse
import re
import subprocess
import sys
import time

import results_file

ROW = re.compile(r"(?P<row>\S.*?)\s+(?P<us>[\d.]+) us\s+load\s+(?P<load>[\d.]+)\s+ratio.* TB/s(?P<rest>.*)")


def measure(program, l2, words):
    done = subprocess.run([program, *(["--cold"] if l2 == "cold" else []), *words], capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="", end="")
    found = [match for match in map(ROW.match, done.stdout.splitlines()) if match]
    rows = [
        {
            "row": " ".join(match["row"].split()),
            "l2": l2,
            "us": {"foveal": float(match["us"]), "load": float(match["load"])},
            "ratio": {"load": round(float(match["us"]) / float(match["load"]), 4)},
        }
        for match in found
    ]
    bf16 = {row["row"]: row["us"]["foveal"] for row in rows}
    for row in rows:
        if row["row"].endswith(" e4m3"):
            row["ratio"]["bf16"] = round(row["us"]["foveal"] / bf16[row["row"].removesuffix(" e4m3")], 4)
    return rows, done.returncode == 0 and not any(match["rest"].strip() for match in found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="decode_bench")
    parser.add_argument("--commit", default="", help="that was built")
    parser.add_argument("--write", metavar="FOLDER", help="where decode_bench.json goes")
    options = parser.parse_args()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    warm, warm_is_right = measure(options.program, "warm", ["--e4m3"])
    cold, cold_is_right = measure(options.program, "cold", ["--e4m3", "b1"])
    document = {
        "program": "decode_bench",
        "gpu": gpu,
        "driver": driver,
        "commit": options.commit,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["bench/decode_bench.py", *sys.argv[1:]]),
        "rows": warm + cold,
    }
    if options.write:
        results_file.write(options.write, "decode_bench", document)
    return 0 if warm_is_right and cold_is_right else 1


if __name__ == "__main__":
    sys.exit(main())
