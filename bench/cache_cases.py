"""Operations on a cache of pages beside what PyTorch's own operators make of them: append, copy_pages, gather."""

import foveal
import torch
from cases import DTYPES, NotMeasured, ends_of
from tool import ask

OPERATIONS = ("append", "copy_pages", "gather")


class CacheCase:
    """fields: all that the tool says of the case."""

    def __init__(self, text):
        self.fields = ask("case", text)
        self.text = self.fields["text"]
        self.operation = self.fields["operation"]
        self.flops, self.bytes = self.fields["flops"], self.fields["bytes"]
        self.rows, self.batch, self.page_size = (self.fields[name] for name in ("rows", "batch", "page_size"))
        self.heads_q, self.heads_k, self.head_dim = (self.fields[name] for name in ("heads_q", "heads_k", "head_dim"))
        self.dtype = DTYPES[self.fields["dtype"]]

    def require(self, handled, who):
        """As that of an attention case: these have no options beyond shape and type."""

    def tensors(self, device, logit_sd=1.0):
        """A dictionary of the operation's tensors, in a tuple."""
        copies = self.operation == "copy_pages"
        pages_of_one = -(-self.rows // self.page_size)
        pages = 2 * self.rows if copies else 2 * self.batch * pages_of_one
        draw = lambda *shape: torch.randn(*shape, dtype=self.dtype, device=device)  # noqa: E731
        shape = pages, self.page_size, self.heads_k, self.head_dim
        given = {"k_cache": draw(*shape), "v_cache": draw(*shape)}
        order = torch.randperm(pages, device=device)
        if copies:
            return ({**given, "pairs": order.view(-1, 2).to(torch.int32)},)
        table = order[: self.batch * pages_of_one].view(self.batch, pages_of_one)
        key = torch.arange(self.rows, device=device)
        slots = (table[:, key // self.page_size] * self.page_size + key % self.page_size).flatten()
        if self.operation == "gather":
            ends = ends_of([self.rows] * self.batch, device)
            return ({**given, "table": table.to(torch.int32), "slots": slots, "ends": ends},)
        rows = self.batch * self.rows
        angles = torch.randn(rows, self.head_dim // 2, device=device)
        given |= {"k": draw(rows, self.heads_k, self.head_dim), "v": draw(rows, self.heads_k, self.head_dim)}
        given |= {"q": draw(rows, self.heads_q, self.head_dim), "q_out": draw(rows, self.heads_q, self.head_dim)}
        given |= {"positions": torch.randperm(rows, device=device).to(torch.int32)}
        return ({**given, "slots": slots, "cos": angles.cos(), "sin": angles.sin()},)

    def reference(self, given):
        return _Reference(self, given)

    def makers(self, builds, device_name, without):
        """name -> function of (case, tensors), which makes a call."""
        makers = {name: lambda case, given, path=path: foveal_call(path, case, given) for name, path in builds.items()}
        return makers if "torch" in without else makers | {"torch": torch_call}


def _turned(x, given):
    """The rotary embedding of half-split pairs, in fp32."""
    cos, sin = (given[name][given["positions"].long()][:, None] for name in ("cos", "sin"))
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _flat(cache):
    return cache.view(-1, *cache.shape[2:])


def torch_call(case, given):
    """PyTorch's operators, one after the other."""
    caches = given["k_cache"], given["v_cache"]

    def append():
        _flat(caches[0])[given["slots"]] = _turned(given["k"], given)
        _flat(caches[1])[given["slots"]] = given["v"]
        return *caches, _turned(given["q"], given)

    def copy_pages():
        src, dst = given["pairs"].long().unbind(1)
        for cache in caches:
            cache[dst] = cache[src]
        return caches

    def gather():
        return tuple(_flat(cache).index_select(0, given["slots"]) for cache in caches)

    return {"append": append, "copy_pages": copy_pages, "gather": gather}[case.operation]


def foveal_call(path, case, given):
    from implementations import through

    caches = given["k_cache"], given["v_cache"]

    def append():
        names = {
            "slot_mapping": "slots",
            "cos": "cos",
            "sin": "sin",
            "positions": "positions",
            "q": "q",
            "q_out": "q_out",
        }
        options = {name: given[of] for name, of in names.items()}
        return *caches, foveal.append(given["k"], given["v"], *caches, **options)

    def copy_pages():
        foveal.copy_pages(*caches, given["pairs"])
        return caches

    if case.operation != "gather":
        return through(path, {"append": append, "copy_pages": copy_pages}[case.operation])
    results = [cache.new_full((case.batch * case.rows, *cache.shape[2:]), float("nan")) for cache in caches]
    options = {"block_table": given["table"], "k": results[0], "v": results[1]}
    return through(path, lambda: foveal.gather(*caches, given["ends"], **options))


class _Reference:
    """Bits: what is copied is right or wrong; what turns is rounded once from fp32."""

    plain_error = 0.0, 0.0

    def __init__(self, case, given):
        copy = {name: tensor.clone() for name, tensor in given.items()}
        self.expected = torch_call(case, copy)()

    def error_of(self, results):
        """(largest, relative) error; infinite where an element is not finite."""
        pairs = [(a.double(), b.double()) for a, b in zip(results, self.expected, strict=True)]
        if not all(torch.isfinite(a).all() for a, _ in pairs):
            return float("inf"), float("inf")
        difference = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)
        return max((a - b).abs().max().item() for a, b in pairs), difference.sqrt().item()

    def accepts(self, error):
        return error == (0.0, 0.0)


def case_of(text, attention_case):
    """An operation on a cache, or, of any other text, attention_case(text). Refuses what is neither."""
    if text.partition(" ")[0] in OPERATIONS:
        return CacheCase(text)
    if text.startswith("merge "):
        raise NotMeasured(f"{text}: here only attention and a cache's operations are timed; foveal bench times this")
    return attention_case(text)
