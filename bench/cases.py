"""Cases and suites, as the command-line tool knows them (tool.py), and the tensors of a case."""

import functools

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
        self.used_k = self.fields["used_k"] or self.lengths_k
        self.page_size, self.common = self.fields["page_size"], self.fields["common"]
        self.keys = self.fields["keys"] or ("varlen" if self.fields["varlen"] else "dense")  # or "pages"
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

    def reference(self, q, k, v):
        """What the output should be; see reference.py."""
        from reference import Reference

        return Reference(self, q, k, v)

    def makers(self, builds, device_name, without):
        """name -> function of (case, q, k, v), which makes a call. See implementations.py."""
        import implementations

        makers = {name: lambda *a, path=path: implementations.foveal_build(path, *a) for name, path in builds.items()}
        return makers | {n: make for n, make in implementations.PEERS[device_name].items() if n not in without}

    @property
    def decodes(self):
        """One query a sequence: the last, which sees every key of a causal mask."""
        return set(self.lengths_q) == {1}

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
        logit_sd. k and v in pages: [pages, page_size, h_k, d]."""

        def draw(form, lengths, heads, channels):
            if form == "pages":
                lead = (self._first_pages()[-1], self.page_size)
            elif self.fields["bhsd"]:
                drawn = torch.randn(self.batch, heads, lengths[0], channels, dtype=self.dtype, device=device)
                return drawn.transpose(1, 2)
            else:
                lead = (sum(lengths),) if form == "varlen" else (self.batch, lengths[0])
            return torch.randn(*lead, heads, channels, dtype=self.dtype, device=device)

        q = draw("varlen" if self.varlen else "dense", self.lengths_q, self.heads_q, self.head_dim)
        k = draw(self.keys, self.lengths_k, self.heads_k, self.head_dim)
        v = draw(self.keys, self.lengths_k, self.heads_k, self.head_dim_v)
        return (q if logit_sd == 1.0 else q * logit_sd), k, v

    def offsets(self, device):
        """cu_seqlens_q and cu_seqlens_k, int32 [b + 1]"""
        return tuple(ends_of(lengths, device) for lengths in (self.lengths_q, self.lengths_k))

    def _first_pages(self):
        """Of the common pages, and of each sequence's own; then how many there are."""
        common, firsts = self.common // self.page_size, [0]
        for length in self.used_k:
            firsts.append(max(firsts[-1], common) + -(-length // self.page_size) - common)
        return firsts

    @functools.cached_property
    def pages(self):
        """The pages of each sequence, in an order of their own: lists of numbers."""
        firsts = self._first_pages()
        common = self.common // self.page_size
        order = torch.randperm(firsts[-1], generator=torch.Generator().manual_seed(1)).tolist()
        begins = [common, *firsts[1:-1]]
        return [order[:common] + order[begin:end] for begin, end in zip(begins, firsts[1:], strict=True)]

    def block_table(self, device):
        """int32 [b, max_pages], 0 behind a sequence's pages."""
        longest = max(map(len, self.pages))
        return torch.tensor([own + [0] * (longest - len(own)) for own in self.pages], dtype=torch.int32, device=device)

    def rows_k(self, i, x):
        """Sequence i's rows of k or v, [used, h_k, d]."""
        used = self.used_k[i]
        if self.keys == "pages":
            return x[torch.tensor(self.pages[i], device=x.device)].flatten(0, 1)[:used]
        first = sum(self.lengths_k[:i]) if self.keys == "varlen" else 0
        return (x if self.keys == "varlen" else x[i])[first : first + used]

    def dense_keys(self, *tensors):
        """k and v as [b, s_k, h_k, d], for who knows no pages. Refuses lengths that differ."""
        if self.keys == "dense" and self.used_k == self.lengths_k:
            return tensors
        if len(set(self.used_k)) > 1:
            raise NotMeasured("lengths of keys that differ")
        return tuple(torch.stack([self.rows_k(i, x) for i in range(self.batch)]) for x in tensors)


def ends_of(lengths, device):
    """int32 [b + 1]: where each sequence begins, and the end."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def suite_names():
    """Of the lists that speed is judged by."""
    return [suite["suite"] for suite in ask("suite") if suite["kind"] == "speed"]


def suite(name):
    """The texts of its cases."""
    answer = ask("suite", name)
    if answer["kind"] != "speed":
        raise NotMeasured(f"{name} is a list for correctness (foveal check --suite {name}), not for speed")
    return answer["cases"]
