#!/usr/bin/env python3
"""What an option costs: the time of a call with it over that of the plain call, each alone.

    python3 bench/options.py --commit $(git rev-parse HEAD) --write bench/results/h200

Interleaved call by call, all would run at one clock, while alone a plain call, which is bound by power, runs slower
than one that waits for its softmax. So each call has the device to itself for blocks of --seconds, in random order, and
counts once the clock has settled: in the last three fifths of a block. The ratio is that of the medians over the
blocks. Cases without a mask have PyTorch's ways to add a bias beside ours. Needs the package, PyTorch and a GPU.
"""

import argparse
import random
import statistics
import sys
import time

import foveal
import results_file
import torch
from cases import Case
from devices import Gpu
from implementations import sdpa
from torch.nn.attention import SDPBackend

CASES = ["b4 s4096 hq32 hk8 d128 bf16 causal", "b4 s4096 h32 d64 bf16 causal", "b4 s4096 hq16 hk8 d256 bf16 causal",
         "b4 s4096 h16 d128 bf16 full"]  # fmt: skip
PEERS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}
CALLS_A_SAMPLE = 20
SETTLING = 0.4  # of a block


def option_calls(case):
    """name -> call; the first is the plain one. ALiBi's slopes are those of its paper.

    f16 twice: its products take more power the more bits of the numbers are set.
    """
    case.require(("window_left", "window_right"), "options.py")
    heads = case.heads_q
    slopes = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)], device="cuda")
    options = {
        "plain": {},
        "softcap 50": {"softcap": 50.0},
        "alibi": {"alibi_slopes": slopes},
        "sinks": {"sinks": torch.randn(heads, device="cuda")},
        "lse": {"return_lse": True},
        "dropout 0.1": {"dropout_p": 0.1, "dropout_state": torch.tensor([1, 2], device="cuda")},
    }
    tensors = case.tensors("cuda")
    square = (case.lengths_q[0], case.lengths_k[0])
    matrices = {
        "bias": {"bias": torch.randn(1, heads, *square, dtype=case.dtype, device="cuda")},
        "bias, shared": {"bias": torch.randn(1, 1, *square, dtype=case.dtype, device="cuda")},
        "bias, f32": {"bias": torch.randn(1, 1, *square, device="cuda")},
        "mask, shared": {"mask": torch.rand(1, 1, *square, device="cuda") < 0.9},
    }
    options |= matrices

    def call(tensors, **options):
        out = torch.empty(*tensors[0].shape[:-1], case.head_dim_v, dtype=tensors[0].dtype, device="cuda")
        arguments = {"causal": case.causal, "window": case.window, "out": out, **options}
        return lambda: foveal.attention(*tensors, **arguments)

    calls = {name: call(tensors, **option) for name, option in options.items()}
    calls["f16"] = call([torch.randn_like(x, dtype=torch.float16) for x in tensors])
    calls["f16, bf16's numbers"] = call([x.to(torch.float16) for x in tensors])
    if not case.causal:  # PyTorch takes a matrix or causal; one of q's type, or boolean
        calls |= {
            f"{peer}, {name}": sdpa(backend, case, *tensors, attn_mask=matrix)
            for peer, backend in PEERS.items()
            for name, option in matrices.items()
            for matrix in option.values()
            if matrix.dtype in (case.dtype, torch.bool)
        }
    return calls


def block(call, device, seconds):
    """Microseconds of the call, once it has run alone for a while."""
    call()
    device.synchronize()
    begin, times = time.perf_counter(), []
    while (elapsed := time.perf_counter() - begin) < seconds:
        [(_, sample_s)] = device.round([("", lambda: [call() for _ in range(CALLS_A_SAMPLE)])])
        if elapsed > SETTLING * seconds:
            times.append(1e6 * sample_s / CALLS_A_SAMPLE)
    return statistics.median(times)


def median_of_known(values):
    return statistics.median(values) if None not in values else None


def measure(text, device, blocks, seconds):
    calls = option_calls(Case(text))
    us, clocks, watts = ({name: [] for name in calls} for _ in range(3))
    for call in calls.values():
        block(call, device, seconds / 2)
    for _ in range(blocks):
        for name in random.sample(sorted(calls), len(calls)):
            device.telemetry.take()
            device.telemetry.on = True
            us[name].append(block(calls[name], device, seconds))
            device.telemetry.on = False
            clock, power = device.telemetry.take()
            clocks[name].append(clock)
            watts[name].append(power)
    middle = {name: statistics.median(times) for name, times in us.items()}
    row = {"case": text, "blocks": blocks, "options": {}}
    print(text)
    for name in calls:
        low, high = min(us[name]), max(us[name])
        row["options"][name] = {
            "us": round(middle[name], 2),
            "least_us": round(low, 2),
            "most_us": round(high, 2),
            "over_plain": round(middle[name] / middle["plain"], 4),
            "sm_mhz": median_of_known(clocks[name]),
            "watts": median_of_known(watts[name]),
        }
        print(f"    {name:20} {middle[name]:8.1f} us ({low:.1f} to {high:.1f})  {middle[name] / middle['plain']:.3f}")
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=CASES)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="a block")
    parser.add_argument("--commit", required=True, help="of the code measured")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/option_cost.json")
    options = parser.parse_args()
    device = Gpu()
    rows = [measure(text, device, options.blocks, options.seconds) for text in options.cases]
    if options.write:
        document = {**device.about, "commit": options.commit, "date": time.strftime("%Y-%m-%d"),
                    "command": " ".join(sys.argv), "rows": rows}  # fmt: skip
        results_file.write(options.write, "option_cost", document)


if __name__ == "__main__":
    main()
