#!/usr/bin/env python3
"""What a training step of one attention layer costs the host, foveal's beside PyTorch's scaled_dot_product_attention.

    OMP_NUM_THREADS=1 python3 bench/host_cost.py --write bench/results/cpu

A step is a call of plain eager PyTorch whose gradient is recorded, the sum of its output, and backward(), on tensors so
small that what they hold costs next to nothing: what is left is the work of the host. "forward" is the recorded call
alone, "plain" the call under torch.no_grad(), "nothing" a step whose layer is one product. Times are microseconds, the
medians of rounds in which every row is measured, in an order that is shuffled anew; "least" is the least of the rounds,
which other work on the machine touches least. On a GPU the device may be the slower of the two: times are of what the
host has put into its queue, and the queue is emptied between samples.
"""

import argparse
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import foveal
import results_file
import torch
from foveal.compat import flash_attn
from foveal.compat import torch as compat_torch
from torch.nn import functional


def leaves(shape, device, dtype):
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


def layers(options):
    """name -> (function of q, k and v, its leaves)"""
    b, s, h, d = options.shape
    rows = leaves((b, s, h, d), options.device, options.dtype)
    heads = leaves((b, h, s, d), options.device, options.dtype)
    packed = leaves((b * s, h, d), options.device, options.dtype)
    ends = torch.arange(0, b * s + 1, s, dtype=torch.int32, device=options.device)
    return {
        "foveal.attention": (lambda *x: foveal.attention(*x, causal=True), rows),
        "foveal.attention_varlen": (lambda *x: foveal.attention_varlen(*x, ends, ends, causal=True), packed),
        "flash_attn_func of foveal": (lambda *x: flash_attn.flash_attn_func(*x, causal=True), rows),
        "sdpa of foveal": (lambda *x: compat_torch.sdpa(*x, is_causal=True), heads),
        "sdpa of PyTorch": (lambda *x: functional.scaled_dot_product_attention(*x, is_causal=True), heads),
        "nothing": (lambda q, k, v: q * k, rows),
    }


def samples(options):
    """(kind, name) -> a function that works once"""

    def step(function, given):
        for x in given:
            x.grad = None
        function(*given).sum().backward()

    def plain(function, given):
        with torch.no_grad():
            function(*given)

    def forward(function, given):
        function(*given)

    return {
        (kind.__name__, name): lambda kind=kind, layer=layer: kind(*layer)
        for kind in (step, forward, plain)
        for name, layer in layers(options).items()
    }


def measured(functions, options):
    """{row: microseconds of each round}"""
    synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    times = {row: [] for row in functions}
    for number in range(-options.warmup, options.rounds):
        for row in random.sample(list(functions), len(functions)):
            synchronize()
            begin = time.perf_counter()
            for _ in range(options.calls):
                functions[row]()
            if number >= 0:
                times[row].append((time.perf_counter() - begin) / options.calls * 1e6)
    return times


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", type=int, nargs=4, metavar=("b", "s", "h", "d"), default=(1, 8, 1, 16))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=10, help="rounds that do not count (default 10)")
    parser.add_argument("--calls", type=int, default=10, help="of a row in a round (default 10)")
    parser.add_argument("--commit", help="of the code measured; default: git's HEAD here")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/host_cost.json")
    options = parser.parse_args()
    options.dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    return options


def main():
    options = parsed()
    times = measured(samples(options), options)
    rows = []
    for (kind, name), of in times.items():
        other = times[kind, "sdpa of PyTorch"]
        ratio = statistics.median(a / b for a, b in zip(of, other, strict=True))
        row = {"kind": kind, "name": name, "us": round(statistics.median(of), 2), "least_us": round(min(of), 2),
               "over_sdpa": round(ratio, 3)}  # fmt: skip
        rows.append(row)
        print(f"{kind:8} {name:26} {row['us']:8.1f} us, least {row['least_us']:8.1f}   {ratio:6.3f} of SDPA's")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    document = {"suite": "host_cost", "cpu": processor(), "gpu": gpu, "torch": torch.__version__,
                "commit": options.commit or head, "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv),
                "shape": list(options.shape), "rounds": options.rounds, "calls": options.calls,
                "rows": rows}  # fmt: skip
    if options.write:
        results_file.write(options.write, "host_cost", document)


if __name__ == "__main__":
    main()
