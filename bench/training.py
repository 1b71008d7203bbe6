#!/usr/bin/env python3
"""Trains small models with attention by foveal and by transformers' "eager": are the losses the same, but for noise?

    python3 bench/training.py --write bench/results/cpu                  # f32, and bf16 by autocast
    python3 bench/training.py --device cuda --write bench/results/h200   # bf16 by autocast

Four architectures of Hugging Face transformers with random weights (Llama; Mistral, whose window is shorter than the
sequence; Gemma-2 with softcap and window; gpt-oss with sinks and window), each trained by AdamW from the same weights
on the same tokens with attention by foveal, by eager, and "exact": in float64, rounded once. A token repeats that of
DISTANCE places before, but for one in ten, so that nothing but attention can predict it.

Noise is what eager's own rounding does to the loss: its distance from exact, the mean over all steps of the difference.
Training enlarges a rounding error like any other, by more or less as it happens, so one curve says little: every kind
is run --runs times, from weights that are moved by one unit in the last place, and foveal's distances from exact are
compared with eager's by their ranks (Wilcoxon's rank-sum test, one-sided, exact). That asks the same of both, whatever
the type, and no factor is chosen.
Exit status 1 if two runs of foveal from the same weights differ in a bit, if its distances are larger than eager's by
more than chance (LEVEL, shared by the rows), or if nothing was learned.
"""

import argparse
import collections
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits with it alone

import foveal.compat.transformers
import results_file
import torch
import transformers
from devices import Cpu, Gpu
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

VOCABULARY, DISTANCE, SURPRISES = 64, 8, 0.1
BATCH, LENGTH, LEARNING_RATE = 4, 96, 2e-3
KINDS = ("foveal", "eager", "exact")
LEVEL, EVERY = 0.05, 5  # every so many steps of a curve are written

SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 128,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS = {
    "Llama": ("LlamaConfig", {}),
    "Mistral": ("MistralConfig", {"sliding_window": 24}),
    "Gemma-2": ("Gemma2Config", {"sliding_window": 24, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 64}),
    "gpt-oss": ("GptOssConfig", {
        "sliding_window": 24, "num_local_experts": 2, "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }),
}  # fmt: skip


def batches(steps, seed):
    """int64 [steps, BATCH, LENGTH]"""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (steps, BATCH, LENGTH), generator=generator)
    repeats = torch.rand(tokens.shape, generator=generator) >= SURPRISES
    for place in range(DISTANCE, LENGTH):
        before, now = tokens[..., place - DISTANCE], tokens[..., place]
        tokens[..., place] = torch.where(repeats[..., place], before, now)
    return tokens


def model_of(name, implementation, device, moved):
    """moved: 0, or the seed of a move of every weight by one unit in its last place, up or down."""
    torch.manual_seed(0)
    config_class, options = MODELS[name]
    config = getattr(transformers, config_class)(**SIZE | options)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=implementation, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(moved)
    with torch.no_grad():
        for parameter in model.parameters() if moved else ():
            up = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.copy_(torch.nextafter(parameter, torch.where(up, torch.inf, -torch.inf)))
    return model.to(device).train()


def exact(module, query, key, value, attention_mask, scaling, softcap=None, s_aux=None, **others):
    """Attention of the textbook in float64: [b, h, s, d] -> [b, s, h, d] of query's type."""
    with torch.autocast(query.device.type, enabled=False):
        group = query.shape[1] // key.shape[1]
        q, (k, v) = query.double(), (x.double().repeat_interleave(group, dim=1) for x in (key, value))
        scores = q @ k.mT * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + attention_mask.double()
        if s_aux is not None:
            sinks = s_aux.double()[None, :, None, None].expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(-1)[..., : k.shape[2]]
        return (weights @ v).transpose(1, 2).to(query.dtype), None


def losses(name, implementation, dtype, device, tokens, moved=0):
    """The loss of every step, float64 on the host."""
    model = model_of(name, implementation, device, moved)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    values = []
    for ids in tokens.to(device):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.detach())
    return torch.stack(values).double().cpu()


def prepare(threads):
    """Of a process that measures. PyTorch adds up gradients of gpt-oss's experts in any order if nothing is asked."""
    foveal.compat.transformers.register()
    transformers.AttentionInterface.register("exact", exact)
    ALL_MASK_ATTENTION_FUNCTIONS.register("exact", eager_mask)
    transformers.logging.set_verbosity_error()
    torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
        foveal.set_num_threads(threads)


def chance_of(ours, others):
    """That as many numbers, taken from all of these blindly, have ranks whose sum is at least that of `ours`."""
    everything = sorted([*ours, *others])
    ways = collections.Counter({(0, 0): 1})  # (how many are taken, the sum of their ranks): ways to do so
    for rank in range(len(everything)):
        for (taken, total), count in list(ways.items()):
            ways[taken + 1, total + rank] += count
    reached = sum(everything.index(x) for x in ours)
    totals = {total: count for (taken, total), count in ways.items() if taken == len(ours)}
    return sum(count for total, count in totals.items() if total >= reached) / sum(totals.values())


def measure(name, dtype, device, steps, runs):
    tokens = batches(steps, seed=1)
    curves = {
        kind: torch.stack([losses(name, kind, dtype, device, tokens, moved) for moved in range(runs)]) for kind in KINDS
    }
    ours, eager = curves["foveal"], curves["eager"]
    again = losses(name, "foveal", dtype, device, tokens)
    apart = {kind: (curves[kind] - curves["exact"]).abs() for kind in ("foveal", "eager")}
    distances = {kind: sorted(x.mean(1).tolist()) for kind, x in apart.items()}
    last = slice(-max(1, steps // 10), None)
    return {
        "model": name, "dtype": dtype, "same_bits_twice": torch.equal(ours[0], again),
        "first_loss": ours[0, 0].item(),
        "last_loss": {"foveal": ours[:, last].mean().item(), "eager": eager[:, last].mean().item()},
        "distance": distances, "between": sorted((ours - eager).abs().mean(1).tolist()),
        "chance": chance_of(distances["foveal"], distances["eager"]),
        "loss": {"foveal": ours[0, ::EVERY].tolist(), "eager": eager[0, ::EVERY].tolist()},
        "apart": {
            kind: {"least": x.amin(0).tolist(), "median": x.quantile(0.5, 0).tolist(), "most": x.amax(0).tolist()}
            for kind, x in ((kind, x[:, ::EVERY]) for kind, x in apart.items())
        },
    }  # fmt: skip


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--runs", type=int, default=6, help="of each kind, from weights that are moved (default 6)")
    parser.add_argument("--jobs", type=int, default=2, help="on the CPU: processes, of one thread each (default 2)")
    parser.add_argument("--commit", help="of the code measured; default: git's HEAD here")
    parser.add_argument("--write", metavar="FOLDER", help="write FOLDER/training.json")
    return parser.parse_args()


def measured(work, options):
    """A row for each of `work`, in its order."""
    if options.device == "cuda":
        prepare(threads=0)
        yield from itertools.starmap(measure, work)
        return
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=start, initializer=prepare, initargs=(1,)) as pool:
        yield from pool.map(measure, *zip(*work, strict=True))


def main():
    options = parsed()
    device = Gpu() if options.device == "cuda" else Cpu()
    dtypes = ("bf16",) if options.device == "cuda" else ("f32", "bf16")
    work = [
        (name, dtype, options.device, options.steps, options.runs)
        for name in options.model or MODELS
        for dtype in dtypes
    ]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = []
    document = {"suite": "training", **device.about, "jobs": options.jobs, "torch": torch.__version__,
                "transformers": transformers.__version__, "commit": options.commit or head,
                "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "steps": options.steps,
                "every": EVERY, "runs": options.runs, "level": LEVEL, "rows": rows}  # fmt: skip
    for row in measured(work, options):
        rows.append(row)
        bits = "the same" if row["same_bits_twice"] else "OTHER"
        medians = {kind: statistics.median(row["distance"][kind]) for kind in row["distance"]}
        print(
            f"{row['model']:8} {row['dtype']:4}  loss {row['first_loss']:.3f} to {row['last_loss']['foveal']:.4f}, "
            f"eager to {row['last_loss']['eager']:.4f}; from exact {medians['foveal']:.2g}, eager "
            f"{medians['eager']:.2g}, chance {row['chance']:.2g}; {bits} bits twice",
            flush=True,
        )
        if options.write:
            results_file.write(options.write, "training", document)
    is_learned = all(row["last_loss"]["foveal"] < row["first_loss"] - 1 for row in rows)
    is_noise = all(row["chance"] >= LEVEL / len(rows) for row in rows)
    return 0 if is_learned and is_noise and all(row["same_bits_twice"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
