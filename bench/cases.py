"""Problems in the text form of the command-line tool, the suites of docs/performance-log.md, and their tensors."""

import random
import re

import torch

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


class Case:
    """b, s, h or hq and hk, d, dv, dtype, full or causal or left and right, softcap, varlen with qlens (= klens)."""

    def __init__(self, text):
        self.text = text
        tokens = text.split()

        def number(name, default=None):
            return next((int(t[len(name) :]) for t in tokens if re.fullmatch(name + r"\d+", t)), default)

        self.heads_q = number("hq", number("h", 1))
        self.heads_k = number("hk", number("h", self.heads_q))
        self.head_dim = number("d", 128)
        self.head_dim_v = number("dv", self.head_dim)
        self.dtype = next((DTYPES[t] for t in tokens if t in DTYPES), torch.bfloat16)
        self.causal = "causal" in tokens
        self.window = number("left"), 0 if self.causal else number("right")
        self.softcap = number("softcap", 0)
        self.varlen = "varlen" in tokens
        if self.varlen:
            lengths = {t.split("=")[0]: t.split("=")[1] for t in tokens if "=" in t}
            if lengths["qlens"] != lengths["klens"]:
                raise ValueError(f"{text}: compare.py knows varlen with qlens equal to klens")
            self.lengths = [int(n) for n in lengths["qlens"].split(",")]
        else:
            self.lengths = [number("s")] * number("b", 1)
        self.batch, self.rows = len(self.lengths), self.lengths[0]

    def _pairs(self, s):
        left, right = (s if side is None else min(side, s) for side in self.window)
        beyond = lambda width: (s - width) * (s - width - 1) // 2 if width < s else 0  # noqa: E731
        return s * s - beyond(left) - beyond(right)

    @property
    def flops(self):
        return 2 * (self.head_dim + self.head_dim_v) * self.heads_q * sum(map(self._pairs, self.lengths))

    @property
    def bytes(self):
        per_row = (self.head_dim + self.head_dim_v) * (self.heads_q + self.heads_k)
        return per_row * sum(self.lengths) * torch.finfo(self.dtype).bits // 8

    def tensors(self, device, logit_sd=1.0):
        """q, k, v, standard normal; q scaled so that the logits have the standard deviation logit_sd."""
        lead = (sum(self.lengths),) if self.varlen else (self.batch, self.rows)
        shapes = [(self.heads_q, self.head_dim), (self.heads_k, self.head_dim), (self.heads_k, self.head_dim_v)]
        q, k, v = (torch.randn(lead + shape, dtype=self.dtype, device=device) for shape in shapes)
        return (q if logit_sd == 1.0 else q * logit_sd), k, v

    def offsets(self, device):
        """cu_seqlens, int32 [b + 1]"""
        return torch.tensor([0, *self.lengths], device=device).cumsum(0).to(torch.int32)


def _both(shapes):
    return [f"{shape} {mask}" for shape in shapes for mask in ("causal", "full")]


def _varlen(heads):
    draw = random.Random(2026)
    lengths = ",".join(str(draw.randint(64, 4096)) for _ in range(16))
    return f"varlen qlens={lengths} klens={lengths} {heads} d128 bf16"


_SEED = ((128, 128), (128, 512), (128, 1024), (128, 2048), (32, 4096), (128, 8192))
_MHA = ((32, 512), (16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16384))
_SHORT = ((32, 512), (16, 1024), (4, 4096), (1, 16384))

SUITES = {
    "seed": [f"b{b} s{s} hq32 hk8 d128 bf16 causal" for b, s in _SEED],
    "single": [f"b1 s{s} hq32 hk8 d128 bf16 causal" for s in (1024, 4096, 16384, 65536)],
    "bars": [f"b{b} s{s} hq32 hk8 d128 bf16 causal" for b, s in ((1, 16384), (128, 1024), (128, 128))],
    "mha": _both(f"b{b} s{s} h16 d128 bf16" for b, s in _MHA),
    "d64": _both(f"b{b} s{s} h32 d64 bf16" for b, s in _SHORT) + ["b8 s4096 hq32 hk8 d64 bf16 causal"],
    "d256": _both(f"b{b} s{s} h8 d256 bf16" for b, s in _SHORT) + ["b4 s4096 hq16 hk4 d256 bf16 causal"],
    "d192v128": [f"b{b} s{s} h16 d192 dv128 bf16 causal" for b, s in ((4, 4096), (1, 16384))],
    "d512": _both(f"b{b} s{s} h4 d512 bf16" for b, s in ((16, 1024), (4, 4096), (1, 16384))),
    "varlen": _both(_varlen(heads) for heads in ("hq32 hk8", "h16")),
    "window": [
        "b8 s4096 hq64 hk8 d64 bf16 left127 causal",
        "b4 s8192 hq32 hk8 d128 bf16 left1023 causal",
        "b1 s32768 hq32 hk8 d128 bf16 left4095 causal",
    ],
    "softcap": [
        f"{shape} bf16 causal{option}"
        for shape in ("b4 s4096 hq32 hk16 d128", "b1 s16384 hq32 hk16 d128", "b4 s4096 hq16 hk8 d256")
        for option in ("", " softcap50")
    ],
    "cpu": [
        f"{shape} {dtype} {mask}"
        for shape, mask in (("b1 s2048 h16 d64", "causal"), ("b1 s2048 h16 d128", "causal"),
                            ("b1 s4096 h16 d64", "full"), ("b1 s128 h16 d64", "causal"))
        for dtype in ("f32", "bf16")
    ],
}  # fmt: skip
QUICK = {"seed": 3, "single": 2, "mha": 4, "d64": 2, "d256": 2, "d512": 2}  # rows of a suite under --quick; else all
