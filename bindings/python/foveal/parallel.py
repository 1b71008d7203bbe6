"""One sequence over several devices: attention whose rows of q, k and v lie on the ranks of a process group.

    import foveal.parallel
    out = foveal.parallel.attention(q, k, v, causal=True)    # each rank's own rows, of the default group

Every rank calls with its own rows and gets its own rows of the result: what one device that held everything would have
computed. Rows are placed by `placement`; take() cuts a rank's rows out of a whole tensor, positions() says where in
their sequences they stand (for rotary embeddings), plan() prints which method is taken and why. docs/parallel.md has
the whole story.

Groups of gloo and others carry tensors of the CPU. Tensors on a GPU go through the NCCL communicator of the group, on
a stream of its own that is ordered with the current one.

decode() is for servers: one query a sequence, caches whose keys lie in turn on all ranks.

On the CPU, q, k, v, sinks and alibi_slopes have gradients: those of the sum of all ranks' losses. Every rank's backward
pass comes by, in the same order, as its forward pass did. On a GPU a tensor that requires a gradient is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, overload

import foveal
import torch
import torch.distributed as dist
from foveal import _foveal
from foveal._ranks import Rank, rank_of
from torch.autograd.function import once_differentiable

__all__ = ["attention", "dealt_keys", "decode", "plan", "positions", "spans", "take"]


def spans(lengths: Sequence[int], ranks: int, placement: str = "zigzag") -> list[tuple[int, int, int, int]]:
    """Which rank has which rows: (rank, sequence, position, rows), neighbouring rows of one sequence each.

    Args:
        lengths: of the sequences; of a batch [b, s, h, d], whose sequences are alike, of one of them: [s].
        placement: "zigzag": each sequence is cut into 2 * ranks parts, of which rank r has part r and, counted from
            the end, part r again, so that causal masks give all ranks as much to do. "contiguous": all rows, sequence
            after sequence, cut into `ranks` parts; for full attention and windows.
    """
    return list(_placed(tuple(lengths), ranks, placement))


@functools.lru_cache(maxsize=64)
def _placed(lengths: tuple[int, ...], ranks: int, placement: str) -> tuple[tuple[int, int, int, int], ...]:
    return tuple(_foveal.parallel_place(placement, list(lengths), ranks))


def take(
    whole: torch.Tensor, own: Sequence[tuple[int, int, int, int]], rank: int, lengths: Sequence[int], dim: int = 1
) -> torch.Tensor:
    """The rows of `rank` out of `whole`, which has those of all sequences, one after the other, along `dim`.

    own: spans() of the lengths, of all ranks.
    """
    first = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    parts = [whole.narrow(dim, first[s] + position, rows) for r, s, position, rows in own if r == rank]
    return torch.cat(parts, dim) if parts else whole.narrow(dim, 0, 0)


def positions(own: Sequence[tuple[int, int, int, int]], rank: int) -> torch.Tensor:
    """Where in its sequence each of the rank's rows stands: int64 [rows]."""
    parts = [torch.arange(position, position + rows) for r, _, position, rows in own if r == rank]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _described(
    q: Any, k: Any, lengths: Sequence[int] | None, lengths_k: Sequence[int] | None, placement: str, rank: int,
    ranks: int, method: str, head_ranks: int,
) -> dict[str, Any]:  # fmt: skip
    if lengths is None:
        lengths = [_rows(q) * ranks]
        lengths_k = [_rows(k) * ranks] if lengths_k is None and _rows(k) != _rows(q) else lengths_k
    return {
        "spans_q": _placed(tuple(lengths), ranks, placement),
        "spans_k": None if lengths_k is None else _placed(tuple(lengths_k), ranks, placement),
        "rank": rank,
        "ranks": ranks,
        "method": method,
        "head_ranks": head_ranks,
    }


def _rows(tensor: Any) -> int:
    shape = tensor[0] if isinstance(tensor, tuple) else tensor.shape
    return int(shape[-3])


class _Call:
    """One rank's call: what its forward and its backward pass share."""

    def __init__(self, own: Rank, options: dict[str, Any], call: dict[str, Any], return_lse: bool) -> None:
        self.own, self.options, self.call, self.return_lse = own, options, call, return_lse

    def forward(self, tensors: tuple[torch.Tensor, ...], return_lse: bool) -> Any:
        own = self.own
        stream = 0 if own.stream is None else own.stream.cuda_stream
        return _foveal.parallel_attention(
            tensors, self.options, self.call, own.communicator, own.allocate, own.upload, stream, return_lse
        )

    def backward(self, tensors: Any, results: Any, gradients: dict[str, torch.Tensor | None]) -> None:
        own = self.own
        _foveal.parallel_gradients(tensors, results, gradients, self.options, self.call, own.communicator, own.allocate)


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: torch.Tensor | None
    ) -> Any:
        out, lse = call.forward((q, k, v), True)
        ctx.call = call
        ctx.save_for_backward(q, k, v, *others, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor | None, dlse: torch.Tensor | None) -> Any:
        *inputs, out, lse = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else dout.contiguous()
        if ctx.call.return_lse:  # on all ranks or on none
            dlse = torch.zeros_like(lse) if dlse is None else dlse.contiguous()
        asked = [
            torch.empty_like(tensor, memory_format=torch.contiguous_format) if wanted else None
            for tensor, wanted in zip(inputs, ctx.needs_input_grad[1:], strict=True)
        ]
        names = ("dq", "dk", "dv", "dsinks", "dalibi_slopes", "dbias")
        gradients = {"dout": dout, "dlse": dlse, **dict(zip(names, asked, strict=True))}
        ctx.call.backward(tuple(inputs[:3]), (out, lse), gradients)
        return None, *asked


def _records(tensors: dict[str, torch.Tensor | None]) -> bool:
    """Will PyTorch ask for gradients? Refuses those that there are not."""
    asked = [name for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad]
    if not asked or not torch.is_grad_enabled():
        return False
    for name in asked:
        tensor = tensors[name]
        if tensor is not None and tensor.device.type != "cpu":
            raise foveal.UnsupportedError(
                f"{name} requires a gradient; over ranks there is one on the CPU: detach() it, or call under "
                "torch.no_grad()"
            )
    return True


@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: Any = None,
    lengths: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    placement: str = "zigzag",
    method: str = "auto",
    head_ranks: int = 0,
    timeout_seconds: float = 600.0,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    align: str = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    return_lse: Literal[False] = False,
) -> torch.Tensor: ...
@overload
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: Any = None,
    lengths: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    placement: str = "zigzag",
    method: str = "auto",
    head_ranks: int = 0,
    timeout_seconds: float = 600.0,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    align: str = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    group: Any = None,
    lengths: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    placement: str = "zigzag",
    method: str = "auto",
    head_ranks: int = 0,
    timeout_seconds: float = 600.0,
    scale: float | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    align: str = "bottom_right",
    softcap: float = 0.0,
    chunk: int = 0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(scores, masked) @ v over the ranks of a process group. Each of them calls, with its own rows.

    Args:
        q, k, v: this rank's rows, [b, s, heads, d], or packed, [total, heads, d]; k and v without gaps.
        group: of torch.distributed; None: the default one.
        lengths: of the sequences as a whole, on every rank the same. Of a batch, whose sequences are alike, one;
            None: as many rows on each rank as on this one. Packed documents may cross ranks.
        lengths_k: of the keys; None: those of the queries.
        placement: "zigzag" or "contiguous": see spans().
        method: "ring", "all_gather", "ulysses", or "auto": the fastest by the plan's model.
        head_ranks: ulysses: how many ranks divide the heads among them; the rest goes by ring. 0: chosen.
        timeout_seconds: how long a rank waits for another; then it raises.
        return_lse: also the natural logarithm of the sum of exp, [b, heads, s] or [heads, total]. It has a gradient.
        The others as those of foveal.attention, of whole sequences: a bias or a mask has this rank's rows and all keys.

    Raises:
        foveal.InvalidArgument, foveal.UnsupportedError: before anything is sent, on all ranks alike.
        foveal.Error: a rank has failed, or has not come. Afterwards the communicator is of no use: make a new group.
    """
    group = dist.group.WORLD if group is None else group
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    call = _described(q, k, lengths, lengths_k, placement, rank, ranks, method, head_ranks)
    options = {
        "scale": scale, "causal": causal, "window": window, "align": align, "softcap": softcap, "chunk": chunk,
        "alibi_slopes": alibi_slopes, "sinks": sinks, "bias": bias, "mask": mask,
    }  # fmt: skip
    tensors = (q[None], k[None], v[None]) if q.dim() == 3 else (q, k, v)
    of_call = _Call(rank_of(group, q.device, timeout_seconds), options, call, return_lse)
    if _records({"q": q, "k": k, "v": v, "sinks": sinks, "alibi_slopes": alibi_slopes, "bias": bias}):
        both = _Recorded.apply(of_call, *tensors, sinks, alibi_slopes, bias)  # type: ignore[no-untyped-call]
        result = both if return_lse else both[0]
    else:
        result = of_call.forward(tensors, return_lse)
    if q.dim() != 3:
        return result  # type: ignore[no-any-return]
    return (result[0][0], result[1][0]) if return_lse else result[0]


def dealt_keys(lengths: torch.Tensor, span: int, rank: int, ranks: int) -> torch.Tensor:
    """How many of the first `lengths` keys of each sequence `rank` has, a tensor as lengths.

    They are dealt out to the ranks in turn, `span` at a time: key j lies on rank j // span % ranks, behind those that
    this rank already has.
    """
    return lengths // (span * ranks) * span + (lengths % (span * ranks) - rank * span).clamp(0, span)


def decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    lengths: torch.Tensor,
    span: int = 1,
    block_table: torch.Tensor | None = None,
    page_indptr: torch.Tensor | None = None,
    page_indices: torch.Tensor | None = None,
    group: Any = None,
    timeout_seconds: float = 600.0,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of one query a sequence to caches whose keys lie in turn on all ranks: see dealt_keys().

    Every rank calls with the same q, computes with its own keys, and gets the whole result, the same bits on each: all
    partial results are merged in the order of ranks. Not differentiable.

    Args:
        q: [b, 1, h_q, d], the same on all ranks. The queries of a speculative step are sequences of their own, with the
            same pages and lengths of their own.
        k, v: this rank's part of the caches: pages [pages, page_size, h_k, d] with block_table [b, max_pages], or
            page_indptr and page_indices, of its own pages; or [b, s, h_k, d].
        lengths: int32 [b], on q's device: of the sequences as a whole.
        span: so many neighbouring keys lie on one rank; of pages that are dealt out whole, the page's size.
        sinks: a sink counts once.
        The others as those of attention() and foveal.attention.

    Raises:
        As attention().
    """
    group = dist.group.WORLD if group is None else group
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if span < 1:
        raise foveal.InvalidArgument(f"span is {span}; it must be at least 1")
    own = rank_of(group, q.device, timeout_seconds)
    options = {
        "scale": scale, "causal": False, "window": (None, None), "align": "bottom_right", "softcap": softcap,
        "chunk": 0, "sinks": sinks, "seqused_k": dealt_keys(lengths, span, rank, ranks), "block_table": block_table,
        "page_indptr": page_indptr, "page_indices": page_indices,
    }  # fmt: skip
    return _foveal.parallel_decode((q, k, v), options, own.communicator, ranks, own.allocate, return_lse)  # type: ignore[no-any-return]


def plan(
    q: Any,
    k: Any,
    v: Any,
    *,
    rank: int,
    ranks: int,
    lengths: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    placement: str = "zigzag",
    method: str = "auto",
    head_ranks: int = 0,
    backend: Literal["cpu", "sm90"] = "sm90",
    return_lse: bool = False,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
) -> str:
    """Which method attention() would take and why, what it sends and computes: text. Needs neither ranks nor GPUs.

    Args:
        q, k, v: this rank's tensors, or their descriptions: ((1, 4096, 32, 128), "bfloat16").
        The others: those of attention().
    """
    call = _described(q, k, lengths, lengths_k, placement, rank, ranks, method, head_ranks)
    options = {
        "scale": None, "causal": causal, "window": window, "align": "bottom_right", "softcap": 0.0, "chunk": 0,
        "alibi_slopes": None, "sinks": None, "bias": None, "mask": None,
    }  # fmt: skip
    return _foveal.parallel_plan((q, k, v), options, call, backend, return_lse)
