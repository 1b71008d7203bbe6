#!/usr/bin/env python3
"""Trains small models with attention by foveal and by transformers' "eager": are the losses the same, but for noise?

    python3 bench/training.py --write bench/results/cpu                  # f32, and bf16 by autocast
    python3 bench/training.py --device cuda --write bench/results/h200   # bf16 by autocast

Four architectures of Hugging Face transformers with random weights (Llama; Mistral, whose window is shorter than the
sequence; Gemma-2 with softcap and window; gpt-oss with sinks and window), each trained by AdamW twice with foveal and
once with eager from the same weights on the same tokens. A token repeats that of DISTANCE places before, but for one in
ten, so that nothing but attention can predict it.

Noise is what rounding alone does to eager's loss: the largest distance, at a step, of further runs of eager, from
weights that are moved by one unit in the last place (--noise of them) and, beside bf16, in f32; at least the loss's
rounding. Few runs miss the step where a curve falls, and rounding moves it there by far more than elsewhere.
Exit status 1 if the two runs of foveal differ in a bit, if foveal's loss is further from eager's than FACTOR times the
noise of the worst step so far, or if nothing was learned.
"""

import argparse
import itertools
import multiprocessing
import os
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

VOCABULARY, DISTANCE, SURPRISES = 64, 8, 0.1
BATCH, LENGTH, LEARNING_RATE = 4, 96, 2e-3
FACTOR, EVERY = 2.0, 5  # every so many steps of a curve are written

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
    transformers.logging.set_verbosity_error()
    torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
        foveal.set_num_threads(threads)


def measure(name, dtype, device, steps, noise_runs):
    tokens = batches(steps, seed=1)
    ours, again = (losses(name, "foveal", dtype, device, tokens) for _ in range(2))
    eager = losses(name, "eager", dtype, device, tokens)
    others = [losses(name, "eager", dtype, device, tokens, seed) for seed in range(1, noise_runs + 1)]
    others += [losses(name, "eager", "f32", device, tokens)] if dtype == "bf16" else []
    away, noise = (ours - eager).abs(), (torch.stack(others) - eager).abs().amax(0)
    allowed = FACTOR * torch.maximum(noise, torch.finfo(torch.float32).eps * eager).cummax(0).values
    last = slice(-max(1, steps // 10), None)
    return {
        "model": name, "dtype": dtype, "same_bits_twice": torch.equal(ours, again),
        "within_noise": bool((away <= allowed).all()), "first_loss": ours[0].item(),
        "last_loss": {"foveal": ours[last].mean().item(), "eager": eager[last].mean().item()},
        "max_difference": away.max().item(), "max_noise": noise.max().item(),
        "worst_of_allowed": (away / allowed).nan_to_num(0).max().item(),
        "loss": {"foveal": ours[::EVERY].tolist(), "eager": eager[::EVERY].tolist()},
        "difference": away[::EVERY].tolist(), "noise": noise[::EVERY].tolist(),
    }  # fmt: skip


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--noise", type=int, default=8, help="runs of eager from weights that are moved (default 8)")
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
        (name, dtype, options.device, options.steps, options.noise)
        for name in options.model or MODELS
        for dtype in dtypes
    ]
    rows = []
    for row in measured(work, options):
        rows.append(row)
        name, dtype = row["model"], row["dtype"]
        bits = "the same" if row["same_bits_twice"] else "OTHER"
        verdict = "within" if row["within_noise"] else "BEYOND"
        print(
            f"{name:8} {dtype:4}  loss {row['first_loss']:.3f} to {row['last_loss']['foveal']:.4f}, eager to "
            f"{row['last_loss']['eager']:.4f}; difference {row['max_difference']:.2g}, noise "
            f"{row['max_noise']:.2g}; {bits} bits twice; {verdict} noise",
            flush=True,
        )
    if options.write:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        document = {"suite": "training", **device.about, "jobs": options.jobs, "torch": torch.__version__,
                    "transformers": transformers.__version__, "commit": options.commit or head,
                    "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv), "steps": options.steps,
                    "every": EVERY, "noise_runs": options.noise, "factor": FACTOR, "rows": rows}  # fmt: skip
        results_file.write(options.write, "training", document)
    is_learned = all(row["last_loss"]["foveal"] < row["first_loss"] - 1 for row in rows)
    return 0 if is_learned and all(row["same_bits_twice"] and row["within_noise"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
