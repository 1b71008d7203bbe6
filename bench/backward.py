#!/usr/bin/env python3
"""foveal's gradients beside cuDNN's, through PyTorch: the same tensors, one process, interleaved, shuffled every round.

    python3 bench/backward.py --write bench/results/h200
    python3 bench/backward.py --quick --rows "d64 causal"

A row of "gradients" is torch.autograd.grad alone, in a CUDA graph: the kernels before and behind the main one are in
it, no host time is. A row of "step" is a forward pass, the sum of its output, and backward(), as a user calls them;
with joules, each implementation alone. What cuDNN refuses is in its row, with its words. Where a row names a case to
stand beside, foveal's gradient of that case is a sample of the same rounds: over_share is its time over that case's
share of the work: of the tiles that a mask touches, or of the FLOPs. FLOPs are those of five products over the visible
pairs. Times and ratios are taken as compare.py does.

Before a row is timed, its gradients, as the graph wrote them, are compared: those of two KV heads with the textbook's
in float32, and all with cuDNN's. Of dropout, the textbook's weights are those that the forward pass keeps. Exit status
1, and no row, where foveal's are wrong. Needs the package, PyTorch and a GPU.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass

import foveal
import implementations
import results_file
import torch
from cases import Case, NotMeasured
from compare import alone, timed
from devices import Gpu
from gradient_reference import apart, errors_of
from tool import ToolError

TOLERANCE = 0.02  # of a gradient's norm; P and dS of 16 bits come to 0.003 … 0.006
RATE = 500e12  # FLOP/s, about; for the length of a sample
LENGTHS = "1024,64,3000,200,1800,4096,640,129,2500,512,3449,333,1500,777,1000,2048"  # 1442 on average


@dataclass(frozen=True)
class Row:
    kind: str
    case: str
    beside: str = ""
    work: str = "FLOPs"  # or "tiles": what over_share is a share of
    is_quick: bool = False


def _gradients(*texts, is_quick=False):
    return [Row("gradients", text, is_quick=is_quick) for text in texts]


PLAIN, PLAIN_64 = "b4 s4096 h16 d128 bf16 causal", "b4 s4096 h16 d64 bf16 causal"
LONG = "b1 s16384 h16 d128 bf16 causal"
ROWS = [
    *_gradients("b32 s512 h16 d128 bf16 causal"),
    *_gradients("b16 s1024 h16 d128 bf16 causal", "b16 s1024 hq32 hk8 d128 bf16 causal", is_quick=True),
    *_gradients("b8 s2048 h16 d128 bf16 causal", PLAIN, "b1 s4096 hq32 hk8 d128 bf16 causal", LONG),
    *_gradients("b2 s8192 hq32 hk8 d128 bf16 causal", "b4 s4096 h16 d128 bf16 full", "b1 s16384 h16 d128 bf16 full"),
    *_gradients("b16 s1024 h16 d64 bf16 causal", PLAIN_64, "b4 s4096 h16 d64 bf16 full"),
    *_gradients("b4 s4096 h16 d256 bf16 causal", "b1 s16384 h16 d256 bf16 full"),
    *_gradients("b4 s4096 h16 d192 dv128 bf16 causal", "b1 s4096 h8 d512 bf16 full"),
    Row("gradients", "b1 s16384 h16 d128 bf16 left1023 causal", LONG, "tiles"),
    Row("gradients", f"varlen qlens={LENGTHS} klens={LENGTHS} h16 d128 bf16 causal", "b16 s1442 h16 d128 bf16 causal"),
    Row("gradients", f"{PLAIN} dropout0.1 dropstate=1,2", PLAIN, is_quick=True),
    Row("gradients", f"{PLAIN_64} dropout0.1 dropstate=1,2", PLAIN_64),
    Row("step", "b16 s1024 h16 d128 bf16 causal", is_quick=True),
    Row("step", PLAIN),
]


def chosen(words, is_quick):
    """The rows that have all of these words, the kind among them."""
    rows = [row for row in ROWS if row.is_quick or not is_quick]
    return [row for row in rows if set(words.split()) <= {row.kind, *row.case.split()}]


def gradient_flops(case):
    """S, dK and dQ have d channels, dP and dV have d_v: 2.5 times the forward's where these are equal."""
    channels = 3 * case.head_dim + 2 * case.head_dim_v
    return 2 * channels * case.heads_q * case.fields["visible_pairs"]


def tiles(case):
    """Of 128 keys by 64 queries, as the main kernel walks them, those that the mask touches; of one head."""
    left, right = case.window
    count = 0
    for s in case.lengths_k:
        for key in range(0, s, 128):
            first = 0 if right is None else max(0, key - right)
            last = s - 1 if left is None else min(s - 1, key + 127 + left)
            count += last // 64 - first // 64 + 1
    return count


def foveal_forward(case, q, k, v):
    handled = ("window_left", "window_right", "varlen", "dropout", "dropout_state")
    case.require(handled, "backward.py's call of foveal")
    options = {"causal": case.causal, "window": case.window}
    if case.fields["dropout"]:
        state = torch.tensor(case.fields["dropout_state"], device=q.device)
        options |= {"dropout_p": case.fields["dropout"], "dropout_state": state}
    if case.varlen:
        ends = case.offsets(q.device)
        return lambda v=v: foveal.attention_varlen(q, k, v, *ends, **options)
    return lambda v=v: foveal.attention(q, k, v, **options)


FORWARDS = {"foveal": foveal_forward, "cudnn": implementations.cudnn}


class Gradient:
    """Of a forward pass that is done here, once. results: dq, dk and dv of the latest call.

    Of leaves of its own: PyTorch runs a backward pass on its forward's stream, and binds a leaf to the stream where it
    was first used; a capture on another one fails.
    """

    def __init__(self, make, case, tensors, dout):
        self.leaves, self.dout = [x.detach().requires_grad_() for x in tensors], dout
        self.out = make(case, *self.leaves)()

    def __call__(self):
        self.results = torch.autograd.grad(self.out, self.leaves, self.dout, retain_graph=True)


def captured(make, case, tensors, dout, repeats, device):
    """A sample of the gradient alone, and what it writes."""
    replay, gradient = device.captured(lambda: Gradient(make, case, tensors, dout), repeats)
    for x in gradient.results:
        x.fill_(float("nan"))  # what the graph does not write is not right
    replay()
    device.synchronize()

    def sample(alive=gradient):  # a graph reads its tensors where they were
        replay()

    return sample, gradient.results


def stepped(forward, tensors, repeats):
    def sample():
        for _ in range(repeats):
            for x in tensors:
                x.grad = None
            forward().sum().backward()

    sample()
    return sample, [x.grad for x in tensors]


def checked(kind, case, names, device):
    """name -> sample, calls a sample, name -> error, and name -> why not. Raises where foveal is wrong."""
    tensors = case.tensors(device.name)
    shape = *tensors[0].shape[:-1], case.head_dim_v
    dout = torch.randn(shape, dtype=case.dtype, device=device.name)
    dout = dout if kind == "gradients" else torch.ones_like(dout)
    repeats = max(1, round(device.sample_seconds * RATE / gradient_flops(case)))
    samples, results, refused = {}, {}, {}
    for name in names:
        try:
            if kind == "gradients":
                samples[name], results[name] = captured(FORWARDS[name], case, tensors, dout, repeats, device)
            else:
                leaves = [x.detach().requires_grad_() for x in tensors]
                samples[name], results[name] = stepped(FORWARDS[name](case, *leaves), leaves, repeats)
        except Exception as error:  # a peer fails in its own ways
            if name == "foveal":
                raise
            refused[name] = (str(error) or repr(error)).splitlines()[0][:200]
    errors = errors_of(case, tensors, dout, results, foveal_forward(case, *tensors))
    if "cudnn" in results:
        errors["foveal from cudnn"] = apart(results["foveal"], results["cudnn"])
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise ArithmeticError(f"{case.text}: WRONG, {wrong} of a gradient's norm (allowed: {TOLERANCE})")
    return samples, repeats, errors, refused


def measure(row, device, options):
    case = Case(row.case)
    flops = gradient_flops(case) + (case.flops if row.kind == "step" else 0)
    samples, repeats, errors, refused = checked(row.kind, case, FORWARDS, device)
    # Not "flops": suite.py takes files whose rows all have these for compare.py's.
    result = {"kind": row.kind, "case": case.text, "useful_flops": flops}
    if row.beside:
        other = Case(row.beside)
        others, repeats_beside, *_ = checked(row.kind, other, ["foveal"], device)
        samples["beside"] = others["foveal"]
    figures, sample_s = timed(samples, repeats, {"foveal": ""}, device, options, options.seconds)
    result |= figures
    if row.beside:
        size = tiles if row.work == "tiles" else gradient_flops
        work, calls = size(case) / size(other), repeats_beside / repeats
        ratio = result["ratio"].pop("beside") * calls
        result["us"]["beside"] = round(result["us"]["beside"] / calls, 2)
        result["beside"] = {"case": other.text, "useful_flops": gradient_flops(other), "of": row.work,
                            "share": round(work, 4), "ratio": round(ratio, 4),
                            "over_share": round(ratio / work, 4)}  # fmt: skip
    if row.kind == "step" and options.joules > 0 and device.telemetry.joules() is not None:
        _, joules = alone(samples, device, options.joules, repeats, sample_s)
        result["joules"] = {name: float(f"{joule:.4g}") for name, joule in joules.items()}
    return result | {"errors": {name: float(f"{e:.3g}") for name, e in errors.items()}, "refused": refused}


def print_row(row):
    print(f"{row['kind']} {row['case']}   {row['sm_mhz']} MHz {row['watts']} W   errors {row['errors']}")
    for name, us in row["us"].items():
        about = row["beside"] if name == "beside" else row
        text = f"    {name:8} {us:10.1f} us +-{row['spread_pct'][name]:4.1f}%  {about['useful_flops'] / us / 1e6:6.1f} "
        text += "TFLOP/s" + (f"  {row['joules'][name]:.4g} J" if "joules" in row else "")
        if name in row["ratio"]:
            text += f"  foveal takes {row['ratio'][name]:.3f} of it +-{row['ratio_precision_pct'][name]:.1f}%"
        if name == "beside":
            text += f"  foveal takes {about['over_share']:.3f} of its share of the {about['of']} of {about['case']}"
        print(text, flush=True)
    for name, why in row["refused"].items():
        print(f"    {name} refuses: {why}", flush=True)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", metavar="WORDS", help='those that have all of them: "step", "d64 causal"')
    parser.add_argument("--quick", action="store_true", help="a few rows, a second each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a row's rounds, at most (default 2)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds a row (default 0.5)")
    parser.add_argument("--rounds", type=int, default=40, help="at least, if they fit in --seconds")
    parser.add_argument("--precision", type=float, default=0.5, help="of a ratio, in per cent, is enough")
    parser.add_argument("--joules", type=float, default=0.5, help="seconds that each runs alone, twice; 0: no joules")
    parser.add_argument("--commit", help="of the code measured; default: git's HEAD here")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/backward.json")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warmup, options.joules = min(options.seconds, 1.0), 0.3, 0.0
    if 0 < options.joules < 0.5:
        parser.error("--joules: the energy counter needs half a second")
    if not chosen(options.rows, options.quick):
        parser.error(f"--rows: no row has all of {options.rows!r}")
    return options


def main():
    options = parsed()
    device, rows, wrong = Gpu(), [], []
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    for row in chosen(options.rows, options.quick):
        device.free()
        try:
            rows.append(measure(row, device, options))
            print_row(rows[-1])
        except ArithmeticError as error:
            wrong.append(row)
            print(error, flush=True)
    document = {"suite": "backward", **device.about, "torch": torch.__version__,
                "cudnn": torch.backends.cudnn.version(), "commit": options.commit or head,
                "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "rounds": options.rounds,
                "rows": rows}  # fmt: skip
    if options.write and rows:
        results_file.write(options.write, "backward", document)
    if wrong:
        print(f"{len(wrong)} rows are WRONG above, and not in the file")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotMeasured, ToolError) as error:
        sys.exit(f"backward.py: {error}")
