"""A suite's results file, as bench/compare.py wrote it: its title, its rows, and what they say. Needs no package."""

import json
import pathlib
import re
import statistics

NAMES = {
    "foveal": "foveal",
    "fa3": "FlashAttention-3",
    "cudnn": "cuDNN",
    "fa2": "FlashAttention-2",
    "efficient": "PyTorch's memory-efficient kernel",
    "flashinfer": "FlashInfer",
    "flashinfer_fa2": "FlashInfer's fa2",
    "flashinfer_xqa": "FlashInfer's XQA",
    "bf16": "foveal over bf16",
    "torch_cpu": "PyTorch's SDPA",
    "torch_varlen": "PyTorch's varlen_attn",
    "torch": "PyTorch's operators",
    "two_calls": "foveal, two calls and a merge",
    "candle_foveal": "candle-foveal",
    "published_after": "candle-flash-attn-v3 after 3597 (published)",
    "published_before": "candle-flash-attn-v3 before 3597 (published)",
}

# In the order in which a reader wants them; others follow by name.
TITLES = {
    "seed": "Batches, 32 query heads on 8 KV heads, d 128",
    "single": "One sequence, 32 query heads on 8 KV heads, d 128",
    "mha": "As many KV heads as query heads, d 128",
    "d64": "Head dimension 64",
    "d256": "Head dimension 256",
    "d192v128": "Head dimension 192, values of 128",
    "d512": "Head dimension 512",
    "lengths": "Lengths that are no powers of two",
    "varlen": "Sequences of unequal lengths",
    "decode": "Decoding: one query token a sequence",
    "decode_cold": "Decoding, keys and values from memory",
    "decode_paged": "Decoding, keys in pages",
    "decode_paged_cold": "Decoding, keys in pages, from memory",
    "mixed": "Chunks of prompts and single tokens in one batch",
    "prefix": "A prompt that all sequences share",
    "append": "Appending to a cache",
    "cache_copy": "Copying pages, gathering sequences",
    "chunk": "Few new tokens, on a long past or in short sequences",
    "softcap": "With and without softcap",
    "window": "Sliding windows",
    "bars_sd10": "Logits of standard deviation 10",
    "bars_sd30": "Logits of standard deviation 30",
    "cpu": "CPU",
    "decode_paged_cpu": "CPU, decoding, keys in pages",
    "decode_cpu": "CPU, decoding: one to eight queries a sequence",
    "grid_cpu": "CPU, s by d by type",
}


def short(case):
    """The case, with the number of sequences and the range of their lengths in place of these."""
    if case.startswith("varlen"):
        lengths = [int(n) for n in re.search(r"qlens=([\d,]+)", case)[1].split(",")]
        rest = [t for t in case.split()[1:] if "=" not in t]
        return f"varlen b{len(lengths)} s{min(lengths)}–{max(lengths)} " + " ".join(rest)
    return case


def ratios_of(row):
    """peer -> foveal's time over the peer's, round by round. Files of old commits have medians of each alone."""
    of_medians = {name: row["us"]["foveal"] / us for name, us in row["us"].items() if name != "foveal"}
    return row.get("ratio") or of_medians


def best_ratio(row):
    """The ratio to the fastest peer, and its name; None where there is no peer."""
    ratios = ratios_of(row)
    peer = max(ratios, key=ratios.get, default=None)
    return None if peer is None else (ratios[peer], peer)


class Suite:
    def __init__(self, path, document):
        self.about, self.rows = document, document["rows"]
        self.name = path.stem
        self.title = TITLES.get(self.name, f"Suite {self.name}")
        names = dict.fromkeys(name for row in self.rows for name in row["us"])
        self.names = sorted(names, key=lambda name: (name != "foveal", name))
        self.on_gpu = bool(document.get("gpu"))
        tokens = [set(short(row["case"]).split()) for row in self.rows]
        self._shared = set.intersection(*tokens) if len(tokens) > 1 else set()

    def label(self, row):
        """What tells a row's case from the others of the suite."""
        own = [token for token in short(row["case"]).split() if token not in self._shared]
        return " ".join(own) or short(row["case"])

    def shared_text(self):
        return " ".join(token for token in short(self.rows[0]["case"]).split() if token in self._shared)

    @property
    def is_normal(self):
        """On standard normal data, which is what figures over several suites are made of."""
        return self.about.get("logit_sd", 1.0) == 1.0

    def card(self):
        threads = f", {self.about['threads']} threads" if self.about.get("threads") else ""
        return (self.about.get("gpu") or self.about.get("cpu") or "") + threads

    def place(self):
        return f"{self.card()}, {self.about.get('date', '')[:10]}, commit {self.about.get('commit', '')[:7]}"

    def ratios(self):
        """To the fastest peer, of the rows that have one."""
        return [best[0] for best in map(best_ratio, self.rows) if best]

    def rate(self, row, name):
        """TFLOP/s; on a CPU GFLOP/s."""
        return row["flops"] / row["us"][name] / (1e6 if self.on_gpu else 1e3)


def geometric_mean(ratios):
    return statistics.geometric_mean(ratios)


def load(folder):
    """(suites in their order, {stem: document} of the files that other programs wrote)"""
    suites, others = [], {}
    for path in sorted(pathlib.Path(folder).glob("*.json")):
        document = json.loads(path.read_text())
        rows = document.get("rows") or []
        if rows and all(isinstance(row.get("us"), dict) and "flops" in row for row in rows):
            suites.append(Suite(path, document))
        else:
            others[path.stem] = document
    order = list(TITLES)
    suites.sort(key=lambda suite: (order.index(suite.name) if suite.name in order else len(order), suite.name))
    return suites, others
