#!/usr/bin/env python3
"""foveal beside its peers: the same tensors, one process, interleaved, in an order shuffled every round.

    python3 bench/compare.py --suite seed --suite single --write bench/results/h200
    python3 bench/compare.py --library old=a/libfoveal.so --library new=b/libfoveal.so "b1 s4096 h16 d128 bf16 causal"
    python3 bench/compare.py --device cpu --suite cpu --write bench/results/cpu

Every implementation's output is checked once a case on sampled heads against float64; exit status 1 if foveal is wrong.
On a GPU, short calls are repeated inside a CUDA graph, so that no host time is measured, and times are those of CUDA
events. The ratio to a peer is that inside each round, where both had the same clock: its mean over the rounds, without
the highest and lowest tenth. Calls find their tensors in the last cache as far as that holds them; under --cold, in
memory. Rounds go on until the 95 % interval of that mean is within --precision, or a case has had its time. Joules:
each implementation alone for a while, by the device's energy counter. Needs the package (pip install .) and PyTorch;
peers are compared if they can be imported.
"""

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import time

import foveal
import results_file
import torch
from bounds import bound_us
from cache_cases import case_of
from cases import QUICK, Case, NotMeasured, suite
from devices import Cpu, Gpu
from reference import REFERENCE_OPTIONS
from tool import ToolError

CASE_SECONDS = 6.0  # all samples of a case last about this long at most
MOST_SETS = 256  # of tensors, under --cold


class Progress:
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.shown = total, 0, sys.stderr.isatty()

    def show(self, text):
        if self.shown:
            filled = 30 * self.done // max(self.total, 1)
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r\033[K[{bar}] {self.done}/{self.total} {text}", end="", file=sys.stderr, flush=True)

    def clear(self):
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def checked_calls(case, builds, device, options, tensors):
    """name -> call of everyone who can do the case, and name -> error."""
    reference = case.reference(*tensors)
    calls, errors = {}, {}
    for name, make in case.makers(builds, device.name, options.without).items():
        try:
            call = make(case, *tensors)
            errors[name] = reference.error_of(call())
            calls[name] = call
        except Exception as error:  # peers fail in their own ways
            if name in builds:
                raise
            if not isinstance(error, NotMeasured) or options.verbose:
                print(f"    {name} is left out: {(str(error) or repr(error)).splitlines()[0][:120]}", file=sys.stderr)
    return reference, calls, errors


def alone(calls, device, seconds, repeats, sample_s):
    """Microseconds and joules a forward of each implementation alone, in blocks of `seconds` in alternating order."""
    times, energies = {name: [] for name in calls}, {name: [] for name in calls}
    ahead = max(1, round(0.05 / sample_s))  # samples between two waits for the device
    for name in [*calls, *reversed(calls)]:
        for _ in range(2):
            calls[name]()
        device.synchronize()
        joules, begin, count = device.telemetry.joules(), time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < seconds:
            for _ in range(ahead):
                calls[name]()
            device.synchronize()
            count += repeats * ahead
        if joules is not None:
            energies[name].append((device.telemetry.joules() - joules) / count)
        times[name].append(1e6 * elapsed / count)
    mean = lambda table: {name: statistics.fmean(xs) for name, xs in table.items() if xs}  # noqa: E731
    return mean(times), mean(energies)


def mean_and_precision(values):
    """The mean without the highest and the lowest tenth, and half the width of its 95 % interval in per cent of it.

    From the winsorised standard deviation: Tukey and McLaughlin, Sankhya A 25, 1963. A median would jump where a peer's
    times have two modes, 10 % apart: it is known to 5 % after 1800 rounds."""
    ordered, n = sorted(values), len(values)
    cut = n // 10
    kept = ordered[cut : n - cut]
    mean, winsorised = statistics.fmean(kept), [kept[0]] * cut + kept + [kept[-1]] * cut
    quantile = 1.96 + 2.4 / (len(kept) - 1)  # Student's t, 97.5 %, to 1 % from 8 degrees of freedom on
    return mean, 100 * quantile * statistics.stdev(winsorised) * n**0.5 / (len(kept) * mean)


def ratios_to_others(seconds, main):
    """name -> (mean, precision) of `main`'s time over the other's, round by round."""
    return {
        name: mean_and_precision([a / b for a, b in zip(seconds[main], theirs, strict=True)])
        for name, theirs in seconds.items()
        if name != main
    }


def interleaved(samples, repeats, sample_s, builds, device, options, at_most_s=CASE_SECONDS):
    """Seconds a call of each sample, round by round, and the ratios of the first build to the others."""
    most_rounds = max(5, int(at_most_s / (sample_s * len(samples))))
    rounds = min(options.rounds, most_rounds)
    seconds, main = {name: [] for name in samples}, next(iter(builds))
    device.telemetry.take()
    device.telemetry.on = True
    while True:
        for _ in range(rounds):
            for name, time_s in device.round(random.sample(sorted(samples.items()), len(samples))):
                seconds[name].append(time_s / repeats)
        ratios = ratios_to_others(seconds, main)
        done = len(next(iter(seconds.values())))
        if done + rounds > most_rounds or all(pct <= options.precision for _, pct in ratios.values()):
            break
    device.telemetry.on = False
    return seconds, ratios


class InTurn:
    """A call on one set of tensors after the other, so that none finds its own in the cache."""

    def __init__(self, calls):
        self.calls, self.next = calls, 0

    def __call__(self):
        self.next = (self.next + 1) % len(self.calls)
        return self.calls[self.next]()


def rotated(case, calls, builds, device, options):
    """The calls, each on as many sets of tensors in turn as three times the last cache holds."""
    sets = min(-(-3 * device.cache_bytes // max(case.bytes, 1)), MOST_SETS)
    makers, more = case.makers(builds, device.name, options.without), {name: [call] for name, call in calls.items()}
    for _ in range(1, sets):
        tensors = case.tensors(device.name, options.logit_sd)
        for name in calls:
            more[name].append(makers[name](case, *tensors))
            more[name][-1]()  # what is set up once is no part of a sample
    return {name: InTurn(of_name) for name, of_name in more.items()}, sets


def timed(samples, repeats, builds, device, options, at_most_s=CASE_SECONDS):
    """Once the device is warm: what a row says of its samples' times, clock and power; and seconds of a sample."""
    end = time.perf_counter() + options.warmup
    for sample in itertools.cycle(samples.values()):
        sample()
        device.synchronize()
        if time.perf_counter() > end:
            break
    sample_s = max(statistics.fmean(t for _, t in device.round(samples.items())), 1e-6)
    seconds, ratios = interleaved(samples, repeats, sample_s, builds, device, options, at_most_s)
    clock, watts = device.telemetry.take()
    figures = {"rounds": len(next(iter(seconds.values()))), "us": {}, "spread_pct": {}}
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        figures["us"][name] = round(1e6 * middle, 2)
        figures["spread_pct"][name] = round(100 * (high - low) / middle, 2)
    figures["ratio"] = {name: round(ratio, 4) for name, (ratio, _) in ratios.items()}
    figures["ratio_precision_pct"] = {name: round(pct, 2) for name, (_, pct) in ratios.items()}
    return figures | {"sm_mhz": clock, "watts": watts}, sample_s


def measure(case, builds, device, options):
    tensors = case.tensors(device.name, options.logit_sd)
    reference, calls, errors = checked_calls(case, builds, device, options, tensors)
    repeats, sets = max(1, round(device.sample_seconds / device.estimate(case))), 1
    if options.cold:
        calls, sets = rotated(case, calls, builds, device, options)
        repeats = -(-repeats // sets) * sets
    device.synchronize()
    samples = {name: device.sampled(call, repeats) for name, call in calls.items()}
    figures, sample_s = timed(samples, repeats, builds, device, options)
    row = {
        "case": case.text,
        **({"sets": sets} if options.cold else {}),
        "flops": case.flops,
        "bytes": case.bytes,
        **figures,
    }
    if options.joules > 0 and device.telemetry.joules() is not None or options.alone:
        block = options.alone or options.joules
        alone_us, joules = alone(samples, device, block, repeats, sample_s)
        if options.alone:
            row["alone_us"] = {name: round(us, 2) for name, us in alone_us.items()}
        row["joules"] = {name: float(f"{joule:.4g}") for name, joule in joules.items()}
    row |= {"max_err": errors[next(iter(builds))][0], "ref_err": reference.plain_error[0],
            "rel_err": {name: error[1] for name, error in errors.items()},
            "max_errs": {name: error[0] for name, error in errors.items()},
            "ref_rel_err": reference.plain_error[1]}  # fmt: skip
    wrong = [name for name in errors if not reference.accepts(errors[name])]
    return row, wrong


def best_ratio(row, builds):
    """To the fastest peer, and how precisely it is known; None without peers."""
    to_peers = {name: ratio for name, ratio in row["ratio"].items() if name not in builds}
    if not to_peers:
        return None
    peer = max(to_peers, key=to_peers.get)
    return to_peers[peer], row["ratio_precision_pct"][peer]


def print_row(row, wrong, builds, gpu):
    on_gpu, bound = row["sm_mhz"] is not None, bound_us(gpu, row)
    clock = f"   {row['sm_mhz']} MHz {row['watts']} W" if on_gpu else ""
    clock += f"   bound {bound:.1f} us" if bound else ""
    print(f"{row['case']}{clock}   plain err {row['ref_rel_err']:.2e} max {row['ref_err']:.1e}")
    best, main = best_ratio(row, builds), next(iter(builds))
    for name, us in sorted(row["us"].items(), key=lambda item: item[1]):
        rate = row["flops"] / us / 1e6
        text = f"    {name:12} {us:11.1f} us +-{row['spread_pct'][name]:4.1f}%  "
        text += f"{rate:7.1f} TFLOP/s" if on_gpu else f"{1e3 * rate:7.1f} GFLOP/s"
        text += f"  err {row['rel_err'][name]:.2e} max {row['max_errs'][name]:.1e}"
        if name in row.get("joules", {}):
            text += f"  {row['joules'][name]:.4g} J"
        if "alone_us" in row:
            text += f"  alone {row['alone_us'][name]:.1f} us"
        if name == main and best:
            text += f"  {best[0]:.3f} of the best peer +-{best[1]:.1f}%"
        elif name in builds and name != main:
            text += f"  {main} takes {row['ratio'][name]:.3f} of it +-{row['ratio_precision_pct'][name]:.1f}%"
        verdict = "" if name not in wrong else "  WRONG" if name in builds else "  beyond 1.10"
        print(text + verdict, flush=True)


def print_overhead(device):
    """Host time of a call on a tiny problem, from Python: what the caller waits."""
    q = torch.randn(1, 64, 1, 64, dtype=torch.bfloat16, device=device.name)
    x = q.transpose(1, 2)
    out = torch.empty_like(q)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    calls = {
        "foveal.attention": lambda: foveal.attention(q, q, q, causal=True),
        "foveal.attention, out given": lambda: foveal.attention(q, q, q, causal=True, out=out),
        "PyTorch's SDPA": lambda: sdpa(x, x, x, is_causal=True),
    }
    work = "" if device.name == "cuda" else ", with the work"
    print(f"host time of a call from Python, b1 s64 h1 d64 bf16 causal{work}:")
    times = {name: [] for name in calls}
    for _ in range(40):  # in turn: a host's clock changes by half within seconds
        for name, call in calls.items():
            device.synchronize()
            begin = time.perf_counter()
            for _ in range(50):
                call()
            times[name].append((time.perf_counter() - begin) / 50)
    device.synchronize()
    result = {name: round(1e6 * statistics.median(seconds), 2) for name, seconds in times.items()}
    for name, us in result.items():
        print(f"    {name:28} {us:7.2f} us")
    return result


def write(path, name, rows, device, options, overhead):
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    document = {"suite": name, **device.about, "commit": options.commit or head, "date": time.strftime("%Y-%m-%d"),
                "command": " ".join(sys.argv), "logit_sd": options.logit_sd, "rounds": options.rounds,
                "l2": "cold" if options.cold else "warm",
                "python_call_us": overhead, "rows": rows}  # fmt: skip
    kind = "_alone" if options.alone else "_cold" if options.cold else ""
    results_file.write(path, name + kind, document)


def parsed(arguments=None):
    """arguments: sys.argv's, if not given"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", help="as `foveal suite` lists them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--library", action="append", default=[], metavar="[NAME=]PATH",
                        help="a libfoveal.so to measure in place of the package's own; several with names")  # fmt: skip
    parser.add_argument("--without", action="append", default=[], metavar="PEER")
    parser.add_argument(
        "--rounds", type=int, default=40, help="at least, and as many again while --precision is missed"
    )
    parser.add_argument("--precision", type=float, default=1.0, help="of a ratio, in per cent")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds a case")
    parser.add_argument("--joules", type=float, default=0.5, help="seconds that each implementation runs alone, twice")
    parser.add_argument("--alone", type=float, default=0.0, metavar="SECONDS",
                        help="also time each implementation alone in blocks of so many seconds")  # fmt: skip
    parser.add_argument("--logit-sd", type=float, default=1.0, help="standard deviation of the logits")
    parser.add_argument("--cold", action="store_true",
                        help="tensors in turn, three times what the last cache holds: calls read memory")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, no joules")
    parser.add_argument("--commit", help="of the code measured; default: git's HEAD here")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/SUITE.json, or FOLDER/cases.json")
    parser.add_argument("--verbose", action="store_true", help="also say which peers are not installed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.warmup, options.joules, options.precision = min(options.rounds, 10), 0.2, 0.0, 100.0
    if 0 < options.joules < 0.5:
        parser.error("--joules: the energy counter needs half a second; in 0.12 s a card of 700 W came out at 1045")
    if not options.suite and not options.cases:
        options.suite = ["cpu"] if options.device == "cpu" else ["seed"]
    return options


def chosen(options):
    """suite -> its cases. All are read, and what cannot be measured is refused, before the first is timed."""
    suites = {name: suite(name)[: QUICK.get(name) if options.quick else None] for name in options.suite}
    if options.cases:
        suites["cases"] = options.cases
    cases = {name: [case_of(text, Case) for text in texts] for name, texts in suites.items()}
    for case in itertools.chain.from_iterable(cases.values()):
        case.require(REFERENCE_OPTIONS, "compare.py")
    return cases


def main():
    options = parsed()
    device = Gpu() if options.device == "cuda" else Cpu()
    builds = dict(entry.split("=", 1) if "=" in entry else ("foveal", entry) for entry in options.library)
    builds = builds or {"foveal": ""}
    suites = chosen(options)
    overhead = print_overhead(device)
    progress = Progress(sum(map(len, suites.values())))
    any_wrong, ratios = False, []
    for name, cases in suites.items():
        rows = []
        for case in cases:
            progress.show(case.text[:80])
            device.free()
            row, wrong = measure(case, builds, device, options)
            progress.done += 1
            progress.clear()
            print_row(row, wrong, builds, device.about["gpu"])
            rows.append(row)
            any_wrong |= any(name in builds for name in wrong)
            if best := best_ratio(row, builds):
                ratios.append(best[0])
        if options.write:
            write(options.write, name, rows, device, options, overhead)
    if ratios:
        mean = statistics.geometric_mean(ratios)
        print(f"geometric mean over {len(ratios)} rows: {mean:.3f} of the best peer's time")
    if any_wrong:
        print("foveal is WRONG above: its error is beyond the contract's tolerance (1.10)")
    return 1 if any_wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotMeasured, ToolError) as error:
        sys.exit(f"compare.py: {error}")
