#!/usr/bin/env python3
"""Attention over e4m3 beside bf16 and cuDNN's fp8: the same numbers, one process, interleaved, shuffled every round.

    python3 bench/e4m3.py --write bench/results/h200
    python3 bench/e4m3.py --device cpu --write bench/results/cpu
    python3 bench/e4m3.py --quick --rows "all d128 causal"

Kinds of rows: "all", q, k and v in e4m3, to bf16; "cache", q in bf16 over keys in e4m3; "curve", the error of "all"
at one length of keys, without times. Tensors are standard normal, rounded to e4m3, and every descale is 1: cuDNN's
(nvidia-cudnn-frontend, where it is installed) is one number a tensor. "bf16" is foveal on the same numbers in bf16.

The error is the norm of the difference over the norm of the result in float64 of the same rounded inputs, of 64 rows
of two heads. Exit status 1, and no row, where foveal's is larger than TOLERANCE. FLOPs are those of the visible pairs.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass

import foveal
import results_file
import torch
from cases import Case, NotMeasured
from compare import timed
from devices import Cpu, Gpu
from implementations import KEY_FORMS, WINDOW, key_form
from tool import ToolError

E4M3 = torch.float8_e4m3fn
TOLERANCE = {"all": 0.05, "cache": 0.005, "curve": 0.05}  # P in e4m3 comes to 0.027, out in bf16 to 0.003
ROWS_CHECKED, HEADS_CHECKED = 64, 2


@dataclass(frozen=True)
class Row:
    kind: str
    case: str
    is_quick: bool = False


_LENGTHS = (1024, 4096, 16384, 65536, 131072)
GPU_ROWS = [
    *(
        Row("all", f"b1 s{s} h64 d128 bf16 {mask}", s == 8192)
        for s in (4096, 8192, 16384, 32768)
        for mask in ("causal", "full")
    ),
    *(Row("all", f"b1 s16384 h64 d64 bf16 {mask}") for mask in ("causal", "full")),
    Row("all", "b1 s8192 hq64 hk8 d128 bf16 causal", True),
    Row("all", "b1 s16384 hq64 hk8 d128 bf16 left1023 causal"),
    *(Row("cache", f"b4 s4096 hq32 hk8 d128 bf16 causal{form}", True) for form in ("", " page64", " page16")),
    Row("cache", "b16 sq64 sk8192 hq32 hk8 d128 bf16 causal page64"),
    *(Row("curve", f"b1 sq64 sk{s} h4 d128 bf16 full") for s in _LENGTHS),
]
CPU_ROWS = [
    *(Row("cache", f"b{b} sq1 sk{s} hq32 hk8 d128 bf16 full", s == 4096) for b in (1, 8) for s in (4096, 32768)),
    Row("cache", "b1 s1024 hq8 hk2 d128 bf16 causal", True),
    Row("cache", "b1 s1024 hq8 hk2 d128 bf16 causal page16"),
    Row("all", "b1 s1024 hq8 hk2 d128 bf16 causal", True),
    *(Row("curve", f"b1 sq64 sk{s} h2 d128 bf16 full") for s in _LENGTHS),
]


def rounded(case, device):
    """q, k and v, as bfloat16, of numbers that e4m3 has."""
    return tuple(x.to(E4M3).to(torch.bfloat16) for x in case.tensors(device.name))


def ones(case, device):
    return torch.ones(case.batch, case.heads_k, device=device.name)


def of_foveal(case, q, k, v, device):
    case.require((*WINDOW, *KEY_FORMS), "e4m3.py's call of foveal")
    options = {"causal": case.causal, "window": case.window, **key_form(case, q.device)}
    for name, x in (("q_descale", q), ("k_descale", k), ("v_descale", v)):
        if x.dtype == E4M3:
            options[name] = ones(case, device)
    options["out"] = torch.full((*q.shape[:-1], v.shape[-1]), float("nan"), dtype=torch.bfloat16, device=q.device)
    backend = "sm90" if q.is_cuda else "cpu"
    plan = foveal.plan(q, k, v, **{name: x for name, x in options.items() if name != "out"}, backend=backend)
    if plan.workspace_bytes:
        options["workspace"] = foveal.Workspace(plan.workspace_bytes, like=q)
    return lambda: foveal.attention(q, k, v, **options)


def of_cudnn(case, q, k, v):
    """cuDNN's fp8: q, k, v and its result in e4m3. Its P is multiplied by 1 before it is rounded."""
    try:
        import cudnn
    except ImportError as error:
        raise NotMeasured("nvidia-cudnn-frontend is not installed") from error
    case.require(WINDOW, "e4m3.py's call of cuDNN")
    graph = cudnn.pygraph(
        io_data_type=cudnn.data_type.FP8_E4M3,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
    )

    def described(x):  # [b, s, h, d], as [b, h, s, d]
        seen = x.transpose(1, 2)
        return graph.tensor(dim=list(seen.shape), stride=list(seen.stride()), data_type=cudnn.data_type.FP8_E4M3)

    def number():
        return graph.tensor(dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=cudnn.data_type.FLOAT)

    one = torch.ones(1, 1, 1, 1, device=q.device)
    given = {described(x): x for x in (q, k, v)}
    names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    factors = {name: number() for name in names}
    left, right = case.window
    options = {"left_bound": None if left is None else left + 1, "right_bound": right}
    options |= {"diagonal_alignment": cudnn.diagonal_alignment.BOTTOM_RIGHT} if case.causal else {}
    out_of, _, largest_p, largest_out = graph.sdpa_fp8(
        **dict(zip("qkv", given, strict=True)),
        **factors,
        generate_stats=False,
        attn_scale=case.head_dim**-0.5,
        **options,
    )
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=E4M3, device=q.device)
    seen = out.transpose(1, 2)
    out_of.set_output(True).set_dim(list(seen.shape)).set_stride(list(seen.stride()))
    out_of.set_data_type(cudnn.data_type.FP8_E4M3)
    largest = torch.empty(2, 1, 1, 1, 1, device=q.device)
    for x in (largest_p, largest_out):
        x.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(cudnn.data_type.FLOAT)
    handle = cudnn.create_handle()
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)
    memory = given | dict.fromkeys(factors.values(), one)
    memory |= {out_of: out, largest_p: largest[0], largest_out: largest[1]}

    def call():
        cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
        graph.execute(memory, workspace, handle=handle)
        return out

    return call


def error_of(case, tensors, out):
    """Of ROWS_CHECKED rows, evenly spread, of the first sequence's first and last head."""
    q, k, v = tensors[0][0], *(case.rows_k(0, x) for x in tensors[1:])
    rows = torch.linspace(0, len(q) - 1, min(ROWS_CHECKED, len(q)), device=q.device).long()
    ends = rows + len(k) - len(q)
    behind = ends[:, None] - torch.arange(len(k), device=q.device)
    left, right = case.window
    hidden = torch.zeros_like(behind, dtype=torch.bool) if left is None else behind > left
    hidden = hidden if right is None else hidden | (behind < -right)
    group, squares = case.heads_q // case.heads_k, torch.zeros(2, dtype=torch.float64, device=q.device)
    for head in sorted({0, case.heads_q - 1})[:HEADS_CHECKED]:
        scores = q[rows, head].double() @ k[:, head // group].double().T * case.head_dim**-0.5
        exact = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[:, head // group].double()
        squares += torch.stack([(out[0][rows, head].double() - exact).square().sum(), exact.square().sum()])
    return float((squares[0] / squares[1]).sqrt())


def made(row, case, device):
    """name -> call, and name -> why not; and the tensors in bf16."""
    tensors = rounded(case, device)
    q, k, v = (x.to(E4M3) for x in tensors)
    of_bf16 = {} if row.kind == "curve" else {"bf16": lambda: of_foveal(case, *tensors, device)}
    if row.kind == "cache":
        makers = {"foveal": lambda: of_foveal(case, tensors[0], k, v, device), **of_bf16}
    else:
        makers = {"foveal": lambda: of_foveal(case, q, k, v, device), **of_bf16}
        if device.name == "cuda":
            makers["cudnn"] = lambda: of_cudnn(case, q, k, v)
    calls, refused = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = make()
            calls[name]()
        except Exception as error:  # a peer fails in its own ways
            if name in ("foveal", "bf16"):
                raise
            refused[name] = (str(error) or repr(error)).splitlines()[0][:200]
    return calls, refused, tensors


def measure(row, device, options):
    case = Case(row.case)
    calls, refused, tensors = made(row, case, device)
    errors = {name: float(f"{error_of(case, tensors, call()):.3g}") for name, call in calls.items()}
    if not errors["foveal"] <= TOLERANCE[row.kind]:
        raise ArithmeticError(f"{row.kind} {case.text}: WRONG, {errors} (allowed: {TOLERANCE[row.kind]})")
    result = {"kind": row.kind, "case": case.text, "useful_flops": case.flops}
    if row.kind != "curve":
        repeats = max(1, round(device.sample_seconds / device.estimate(case)))
        samples = {name: device.sampled(call, repeats) for name, call in calls.items()}
        result |= timed(samples, repeats, {"foveal": ""}, device, options, options.seconds)[0]
    return result | {"errors": errors, "refused": refused}


def print_row(row):
    clock = f"   {row['sm_mhz']} MHz {row['watts']} W" if "us" in row else ""
    print(f"{row['kind']} {row['case']}{clock}   errors {row['errors']}")
    for name, us in row.get("us", {}).items():
        text = f"    {name:8} {us:10.1f} us +-{row['spread_pct'][name]:4.1f}%"
        text += f"  {row['useful_flops'] / us / 1e6:6.1f} TFLOP/s"
        if name in row["ratio"]:
            text += f"  foveal takes {row['ratio'][name]:.3f} of it +-{row['ratio_precision_pct'][name]:.1f}%"
        print(text, flush=True)
    for name, why in row["refused"].items():
        print(f"    {name} is left out: {why}", flush=True)


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", default="", metavar="WORDS", help='those that have all of them: "all d128 causal"')
    parser.add_argument("--quick", action="store_true", help="a few rows, a second each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a row's rounds, at most (default 2)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds a row (default 0.5)")
    parser.add_argument("--rounds", type=int, default=40, help="at least, if they fit in --seconds")
    parser.add_argument("--precision", type=float, default=0.5, help="of a ratio, in per cent, is enough")
    parser.add_argument("--commit", help="of the code measured; default: git's HEAD here")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/e4m3.json")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warmup = min(options.seconds, 1.0), 0.3
    return options


def main():
    options = parsed()
    device = Gpu() if options.device == "cuda" else Cpu()
    every = GPU_ROWS if options.device == "cuda" else CPU_ROWS
    chosen = [row for row in every if row.is_quick or not options.quick]
    chosen = [row for row in chosen if set(options.rows.split()) <= {row.kind, *row.case.split()}]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows, wrong = [], []
    for row in chosen:
        device.free()
        try:
            rows.append(measure(row, device, options))
            print_row(rows[-1])
        except ArithmeticError as error:
            wrong.append(row)
            print(error, flush=True)
    document = {"suite": "e4m3", **device.about, "torch": torch.__version__, "commit": options.commit or head,
                "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "rounds": options.rounds,
                "rows": rows}  # fmt: skip
    if options.write and rows:
        results_file.write(options.write, "e4m3", document)
    if not chosen:
        sys.exit(f"e4m3.py: no row has all of {options.rows!r}")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotMeasured, ToolError) as error:
        sys.exit(f"e4m3.py: {error}")
