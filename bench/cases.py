"""Cases and suites, as the command-line tool knows them (tool.py), and the tensors of a case."""

import torch
from tool import ask

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
QUICK = {"seed": 3, "single": 2, "mha": 4, "d64": 2, "d256": 2, "d512": 2}  # rows of a suite under --quick; else all


class NotMeasured(Exception):
    """This implementation is not there, or has no way to compute the case."""


class Case:
    """fields: all that the tool says of the case, `foveal case TEXT --json`."""

    def __init__(self, text):
        self.fields = ask("case", text)
        self.text = self.fields["text"]
        if self.fields["operation"] != "forward":
            raise NotMeasured(f"{self.text}: here only attention is timed; foveal bench times this")
        self.lengths_q, self.lengths_k = self.fields["lengths_q"], self.fields["lengths_k"]
        self.heads_q, self.heads_k = self.fields["heads_q"], self.fields["heads_k"]
        self.head_dim, self.head_dim_v = self.fields["head_dim"], self.fields["head_dim_v"]
        self.dtype = DTYPES[self.fields["dtype"]]
        self.batch, self.varlen = self.fields["batch"], self.fields["varlen"]
        self.window = self.fields["window_left"], self.fields["window_right"]
        self.softcap = self.fields["softcap"]
        self.flops, self.bytes = self.fields["flops"], self.fields["bytes"]

    @property
    def causal(self):
        return self.window[1] == 0

    @property
    def square(self):
        """As many queries as keys: both alignments of a mask are one."""
        return self.lengths_q == self.lengths_k

    def require(self, handled, who):
        """Refuses, by name, what the case asks for beyond a plain problem and `who` does not handle.

        handled: names of the tool's fields. A field that a case gains one day is in no such list, and so is refused.
        """
        unknown = [name for name in self.fields["options"] if name not in handled]
        if unknown:
            asked = ", ".join(f"{name} {self.fields[name]}" for name in unknown)
            raise NotMeasured(f"{who} cannot do {asked} ({self.text})")

    def tensors(self, device, logit_sd=1.0):
        """q, k, v, standard normal, in the case's order in memory; q scaled so that logits have the standard deviation
        logit_sd."""

        def draw(lengths, heads, channels):
            if self.fields["bhsd"]:
                drawn = torch.randn(self.batch, heads, lengths[0], channels, dtype=self.dtype, device=device)
                return drawn.transpose(1, 2)
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


def suite_names():
    """Of the lists that speed is judged by."""
    return [suite["suite"] for suite in ask("suite") if suite["kind"] == "speed"]


def suite(name):
    """The texts of its cases."""
    answer = ask("suite", name)
    if answer["kind"] != "speed":
        raise NotMeasured(f"{name} is a list for correctness (foveal check --suite {name}), not for speed")
    return answer["cases"]
