#!/usr/bin/env python3
"""foveal beside its peers on one GPU: the same tensors, one process, interleaved, in an order shuffled every round.

    python3 bench/compare.py --library build/lib/libfoveal.so --json results.json [CASE ...]

Peers: cuDNN through PyTorch's SDPA, and FlashAttention-3 where `fa3_fwd_interface` can be imported (wheel fa3-fwd).
Each implementation's output is checked once a case on sampled heads against float64; exit status 1 if foveal is wrong.
Short calls are repeated inside a CUDA graph, so that no host time is measured. Times are medians of CUDA events.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time

import torch

from foveal_ctypes import Foveal

SUITES = {
    "seed": [f"b{b} s{s} hq32 hk8 d128 bf16 causal" for b, s in ((128, 128), (128, 512), (128, 1024), (128, 2048), (32, 4096), (128, 8192))],
    "single": [f"b1 s{s} hq32 hk8 d128 bf16 causal" for s in (1024, 4096, 16384, 65536)],
    "bars": [f"b{b} s{s} hq32 hk8 d128 bf16 causal" for b, s in ((1, 16384), (128, 1024), (128, 128))],
    "mha": [f"b{b} s{s} h16 d128 bf16 {mask}" for b, s in ((32, 512), (16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16384)) for mask in ("causal", "full")],
    "d64": [f"b{b} s{s} h32 d64 bf16 {mask}" for b, s in ((32, 512), (16, 1024), (4, 4096), (1, 16384)) for mask in ("causal", "full")],
}
SAMPLE_SECONDS = 2e-3  # one timed sample lasts at least this long
PEAK_FLOPS, PEAK_BYTES = 791e12, 4.27e12  # H200, measured: docs/performance-log.md


class Case:
    """The subset of the tool's case text that peers support: dense b, s, hq, hk, d, dtype, causal or full."""

    def __init__(self, text):
        self.text = text
        tokens = text.split()
        number = lambda name, default=None: next((int(t[len(name):]) for t in tokens if re.fullmatch(name + r"\d+", t)), default)
        self.batch, self.rows, self.head_dim = number("b", 1), number("s"), number("d", 128)
        self.heads_q = number("hq", number("h"))
        self.heads_k = number("hk", number("h"))
        self.dtype = torch.float16 if "f16" in tokens else torch.bfloat16
        self.causal = "causal" in tokens

    @property
    def flops(self):
        pairs = self.rows * (self.rows + 1) // 2 if self.causal else self.rows**2
        return 4 * self.batch * self.heads_q * pairs * self.head_dim

    @property
    def bytes(self):
        return 2 * self.batch * self.rows * self.head_dim * 2 * (self.heads_q + self.heads_k)

    def tensors(self, logit_sd=1.0):
        shape = lambda heads: (self.batch, self.rows, heads, self.head_dim)
        normal = lambda heads: torch.randn(shape(heads), dtype=self.dtype, device="cuda")
        q = normal(self.heads_q)
        return q * logit_sd if logit_sd != 1.0 else q, normal(self.heads_k), normal(self.heads_k)


class Telemetry(threading.Thread):
    """SM clock and watts while `on`, every 20 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.on, self.clocks, self.watts = False, [], []
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
            self.start()
        except Exception as error:  # no NVML: the columns stay empty
            print(f"no NVML: {error}", file=sys.stderr)

    def run(self):
        while True:
            if self.on:
                self.clocks.append(self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM))
                self.watts.append(self.nvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3)
            time.sleep(0.02)

    def take(self):
        mean = lambda xs: round(statistics.fmean(xs)) if xs else None
        result = mean(self.clocks), mean(self.watts)
        self.clocks, self.watts = [], []
        return result


def implementations(case, libraries, q, k, v):
    """name -> (call(), output() as [b, s, h, d])."""
    found = {}
    for name, library in libraries.items():
        out = torch.full_like(q, float("nan"))
        args = library.prepare(q, k, v, out, case.causal)
        call = lambda library=library, args=args: library.forward(args, torch.cuda.current_stream().cuda_stream)
        found[name] = call, (lambda out=out: out)

    from torch.nn.attention import SDPBackend, sdpa_kernel

    views = [x.transpose(1, 2) for x in (q, k, v)]
    result = {}

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            result["cudnn"] = torch.nn.functional.scaled_dot_product_attention(*views, is_causal=case.causal, enable_gqa=case.heads_q != case.heads_k)

    found["cudnn"] = cudnn, lambda: result["cudnn"].transpose(1, 2)
    try:
        import fa3_fwd_interface

        def fa3():
            result["fa3"] = fa3_fwd_interface.flash_attn_func(q, k, v, causal=case.causal)

        def fa3_out():
            return result["fa3"][0] if isinstance(result["fa3"], tuple) else result["fa3"]

        if case.dtype == torch.bfloat16:
            found["fa3"] = fa3, fa3_out
    except ImportError:
        pass
    return found


def reference_error(case, out, q, k, v):
    """Relative Frobenius error against float64 on sampled (batch, head) pairs; inf if an element is not finite."""
    squares = reference_squares = 0.0
    rows = torch.arange(case.rows, device=q.device)
    chosen = rows if case.rows <= 2048 else torch.cat([rows[:128], rows[case.rows // 2 : case.rows // 2 + 128], rows[-128:]])
    for b, h in {(0, 0), (case.batch - 1, case.heads_q - 1), (case.batch // 2, case.heads_q // 3)}:
        kv = h // (case.heads_q // case.heads_k)
        scores = q[b, chosen, h].double() @ k[b, :, kv].double().T / case.head_dim**0.5
        if case.causal:
            scores.masked_fill_(rows[None, :] > chosen[:, None], float("-inf"))
        expected = torch.softmax(scores, -1) @ v[b, :, kv].double()
        squares += (out[b, chosen, h].double() - expected).square().sum().item()
        reference_squares += expected.square().sum().item()
    finite = all(torch.isfinite(part).all().item() for part in out.split(max(1, 2**28 // out[0].numel())))
    return (squares / reference_squares) ** 0.5 if finite else float("inf")


def timed(call, repeats):
    """Milliseconds-per-call events; repeats > 1: inside a graph."""
    if repeats == 1:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    return graph.replay


def measure(case, libraries, telemetry, rounds, warmup_seconds, logit_sd):
    q, k, v = case.tensors(logit_sd)
    found = implementations(case, libraries, q, k, v)
    errors, working = {}, {}
    for name, (call, output) in list(found.items()):
        try:
            call()
            torch.cuda.synchronize()
            errors[name] = reference_error(case, output(), q, k, v)
            working[name] = call
        except Exception as error:
            if name in libraries:
                raise
            print(f"{name} cannot do {case.text}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    estimate = case.flops / 600e12
    repeats = max(1, round(SAMPLE_SECONDS / max(estimate, 2e-5)))
    calls = {name: timed(call, repeats) for name, call in working.items()}
    end = time.time() + warmup_seconds
    while time.time() < end:
        for call in calls.values():
            call()
        torch.cuda.synchronize()
    samples = {name: [] for name in calls}
    rounds = max(5, min(rounds, int(6.0 / (estimate * repeats * len(calls)))))
    telemetry.on = True
    for _ in range(rounds):
        events = []
        for name in random.sample(sorted(calls), len(calls)):
            begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            calls[name]()
            finish.record()
            events.append((name, begin, finish))
        torch.cuda.synchronize()
        for name, begin, finish in events:
            samples[name].append(begin.elapsed_time(finish) * 1e3 / repeats)
    telemetry.on = False
    clock, watts = telemetry.take()
    median = {name: statistics.median(xs) for name, xs in samples.items()}
    quartiles = {name: statistics.quantiles(xs, n=4) for name, xs in samples.items()}
    return {
        "case": case.text, "flops": case.flops, "bytes": case.bytes, "rounds": rounds,
        "us": {name: round(x, 2) for name, x in median.items()},
        "spread_pct": {name: round(100 * (xs[2] - xs[0]) / median[name], 2) for name, xs in quartiles.items()},
        "sm_mhz": clock, "watts": watts, "rel_err": errors,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--suite", action="append", default=[], choices=SUITES)
    parser.add_argument("--library", action="append", required=True, help="path, or NAME=path to compare several builds")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds a case")
    parser.add_argument("--logit-sd", type=float, default=1.0)
    parser.add_argument("--commit", default=None, help="of the code measured; default: git's HEAD here")
    parser.add_argument("--json")
    options = parser.parse_args()
    libraries = dict(entry.split("=", 1) if "=" in entry else ("foveal", entry) for entry in options.library)
    libraries = {name: Foveal(path) for name, path in libraries.items()}
    cases = [Case(text) for text in options.cases + [c for suite in options.suite for c in SUITES[suite]]]
    telemetry, rows, wrong = Telemetry(), [], False
    for case in cases:
        torch.cuda.empty_cache()
        row = measure(case, libraries, telemetry, options.rounds, options.warmup, options.logit_sd)
        rows.append(row)
        peers = [us for name, us in row["us"].items() if name not in libraries]
        bound = max(row["flops"] / PEAK_FLOPS, row["bytes"] / PEAK_BYTES) * 1e6
        print(f"{case.text}   {row['sm_mhz']} MHz {row['watts']} W  bound {bound:.1f} us")
        for name, us in sorted(row["us"].items(), key=lambda item: item[1]):
            ratio = f"{us / min(peers):.3f} of best peer" if peers and name in libraries else ""
            print(f"    {name:12} {us:10.1f} us +-{row['spread_pct'][name]:4.1f}% {row['flops'] / us / 1e6:7.1f} TFLOP/s  err {row['rel_err'][name]:.2e}  {ratio}", flush=True)
        peer_error = min((row["rel_err"][name] for name in row["us"] if name not in libraries), default=3e-3)
        wrong |= any(not row["rel_err"][name] <= 1.2 * peer_error for name in libraries)
    if options.json:
        commit = options.commit or subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        properties = torch.cuda.get_device_properties(0)
        driver = telemetry.nvml.nvmlSystemGetDriverVersion() if hasattr(telemetry, "nvml") else None
        document = {"suite": "+".join(options.suite) or "cases", "gpu": properties.name, "driver": driver, "cuda": torch.version.cuda,
                    "commit": commit, "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "logit_sd": options.logit_sd,
                    "rows": rows}  # fmt: skip
        with open(options.json, "w") as file:
            json.dump(document, file, indent=1)
    if wrong:
        print("foveal's error is more than 1.2 times the best peer's")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
