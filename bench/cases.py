"""Problems in the text form of the command-line tool, the suites of docs/performance-log.md, and their tensors."""

import random
import re

import torch

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


class Case:
    """b, s or sq and sk, h or hq and hk, d, dv, dtype, full or causal or left and right (bottom right), softcap, varlen
    with qlens and klens."""

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
            self.lengths_q, self.lengths_k = ([int(n) for n in lengths[name].split(",")] for name in ("qlens", "klens"))
        else:
            self.lengths_q, self.lengths_k = ([number(name, number("s"))] * number("b", 1) for name in ("sq", "sk"))
        self.batch = len(self.lengths_q)

    @property
    def square(self):
        """As many queries as keys: both alignments of a mask are one."""
        return self.lengths_q == self.lengths_k

    def _pairs(self, sq, sk):
        left, right = (sq + sk if side is None else side for side in self.window)
        own = torch.arange(sk - sq, sk)  # each query's position
        return ((own + right + 1).clamp(0, sk) - (own - left).clamp(0, sk)).clamp(min=0).sum().item()

    @property
    def flops(self):
        pairs = sum(map(self._pairs, self.lengths_q, self.lengths_k))
        return 2 * (self.head_dim + self.head_dim_v) * self.heads_q * pairs

    @property
    def bytes(self):
        rows = sum(self.lengths_q) * self.heads_q + sum(self.lengths_k) * self.heads_k
        return (self.head_dim + self.head_dim_v) * rows * torch.finfo(self.dtype).bits // 8

    def tensors(self, device, logit_sd=1.0):
        """q, k, v, standard normal; q scaled so that the logits have the standard deviation logit_sd."""

        def draw(lengths, heads, channels):
            lead = (sum(lengths),) if self.varlen else (self.batch, lengths[0])
            return torch.randn(*lead, heads, channels, dtype=self.dtype, device=device)

        q = draw(self.lengths_q, self.heads_q, self.head_dim)
        k = draw(self.lengths_k, self.heads_k, self.head_dim)
        v = draw(self.lengths_k, self.heads_k, self.head_dim_v)
        return (q if logit_sd == 1.0 else q * logit_sd), k, v

    def offsets(self, device):
        """cu_seqlens_q and cu_seqlens_k, int32 [b + 1]"""
        return tuple(
            torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
            for lengths in (self.lengths_q, self.lengths_k)
        )


def _both(shapes):
    return [f"{shape} {mask}" for shape in shapes for mask in ("causal", "full")]


def _varlen(heads, batch=16, shortest=64, longest=4096):
    draw = random.Random(2026)
    lengths = ",".join(str(draw.randint(shortest, longest)) for _ in range(batch))
    return f"varlen qlens={lengths} klens={lengths} {heads} d128 bf16"


_SEED = ((128, 128), (128, 512), (128, 1024), (128, 2048), (32, 4096), (128, 8192))
_MHA = ((32, 512), (16, 1024), (8, 2048), (4, 4096), (2, 8192), (1, 16384))
_CHUNKS = ((64, 1, 4096), (64, 16, 4096), (32, 64, 4096), (8, 200, 8192), (4, 512, 16384), (1, 1000, 32768))
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
    # Few new tokens: on a long past, or in short sequences.
    "chunk": [f"b{b} sq{sq} sk{sk} hq32 hk8 d128 bf16 causal" for b, sq, sk in _CHUNKS]
    + [f"b64 sq16 sk4096 {heads} d128 bf16 causal" for heads in ("hq28 hk4", "hq40 hk8", "hq24 hk8")]
    + [f"{_varlen('hq32 hk8', *batch)} causal" for batch in ((512, 1, 64), (128, 4, 256), (64, 64, 960))],
    # No powers of two: their tiles fit no whole number of turns.
    "lengths": [f"b{b} s{s} h16 d128 bf16 causal" for b, s in ((8, 640), (8, 896), (8, 2176), (8, 2944), (16, 2411))]
    + [f"b{b} s{s} hq32 hk8 d128 bf16 causal" for b, s in ((4, 1664), (16, 2411))],
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
