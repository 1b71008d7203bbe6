"""PyTorch's scaled_dot_product_attention, computed by foveal.

    from foveal.compat.torch import sdpa, sdpa_replaced
    out = sdpa(query, key, value, is_causal=True)   # the arguments of torch.nn.functional's function of that name
    with sdpa_replaced():                           # code that calls torch.nn.functional.scaled_dot_product_attention
        model(tokens)

sdpa() refuses what foveal cannot do, or could do only of a copy, by name. In place of PyTorch's function
(sdpa_replaced(), or install() and uninstall()) such calls go to PyTorch's own instead: each reason is warned of once
(FallbackWarning) and counted (fallbacks()). With strict=True they raise as in sdpa().

The replacement holds for the whole process, for all of its threads, as that of torch.nn.attention.sdpa_kernel does. It
reaches code that looks the function up in torch.nn.functional when it calls; not what did
`from torch.nn.functional import scaled_dot_product_attention` before, nor torch.ops.aten. Code inside torch.compile is
reached too: enter sdpa_replaced() around the compiled call, not within. What only memory tells (alignment, on a GPU)
raises there when the compiled code runs, and what falls back is counted when it is traced.
"""

import collections
import contextlib
import dataclasses
import math
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from foveal import InvalidArgument, NoDeviceError, UnsupportedError
from foveal.torch import attention
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

__all__ = [
    "FallbackWarning",
    "clear_fallbacks",
    "fallbacks",
    "install",
    "sdpa",
    "sdpa_replaced",
    "uninstall",
]


def under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors as PyTorch's own attention gets them under torch.autocast: f32, bf16 and f16 in autocast's type."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    cast = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(x.to(dtype) if x is not None and x.dtype in cast else x for x in tensors)


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention, computed by foveal. Refuses what foveal cannot do, by name.

    query [..., h_q, s_q, d], key [..., h_k, s_k, d], value [..., h_k, s_k, d_v] -> [..., h_q, s_q, d_v], of rank 2 (one
    head) and up; leading dimensions broadcast, those of a rank above 4 if they are one dimension in memory. float32,
    bfloat16, float16; the last stride is 1; nothing is copied (but under torch.autocast, which casts).

    Args:
        attn_mask: broadcasts to [..., h_q, s_q, s_k]. bool: True where the key is seen; or of query's dtype or float32:
            added to the scores, where -inf hides a key. The lowest finite number hides none, as in PyTorch.
        dropout_p: probability with which a weight is dropped, in [0, 1). Which are, PyTorch's generator of query's
            device decides (torch.manual_seed()); they are others than PyTorch's own function drops.
        is_causal: query i sees keys 0 to i ("top-left"), whatever the lengths. Together with attn_mask both hold where
            PyTorch's fused functions take both: rank 4 without broadcasting, d_v = d, a mask of rank 2 or 4; else an
            error, as in PyTorch.
        scale: factor on the dot products; None: 1/sqrt(d).
        enable_gqa: h_q may be a multiple of h_k.
    A row that sees no key gives 0.

    Raises:
        InvalidArgument: PyTorch refuses it too. UnsupportedError: foveal cannot do it: other dtypes,
        other strides, key and value of different head counts. Of the problem as foveal sees it, q, k and v are
        query, key and value as [b, s, h, d].
    """
    tensors = query, key, value, attn_mask
    if has_torch_function(tensors):
        options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        result: torch.Tensor = handle_torch_function(sdpa, tensors, query, key, value, attn_mask=attn_mask, **options)
        return result
    _check_options(is_causal, enable_gqa)
    query, key, value, attn_mask = under_autocast(query, key, value, attn_mask)
    _check_tensors(query, key, value, attn_mask)
    if attn_mask is None and _are_heads(query, key, value, enable_gqa):
        rows_first = (x.transpose(1, 2) for x in (query, key, value))
        out = attention(*rows_first, scale=scale, causal=is_causal, align="top_left", dropout_p=dropout_p)
        return out.transpose(1, 2)
    q, k, v, batch = _as_heads(query, key, value, enable_gqa)
    if attn_mask is not None and is_causal:
        _check_mask_and_causal(query, key, value, attn_mask, enable_gqa)
    mask = None if attn_mask is None else _as_scores(attn_mask, query, key, batch, q.shape[-3])
    rank = max(query.dim(), key.dim(), value.dim())
    shape = *(*batch, q.shape[-3])[len(batch) + 3 - rank :], query.shape[-2], value.shape[-1]
    if q.shape[-3] == 0:  # foveal has no tensors without heads
        return query.new_empty(shape)
    q, k, v = (_joined(x, name, batch) for x, name in ((q, "query"), (k, "key"), (v, "value")))
    scores = {} if mask is None else {"mask" if mask.dtype == torch.bool else "bias": mask}
    rows_first = (x.transpose(1, 2) for x in (q, k, v))
    out = attention(*rows_first, scale=scale, causal=is_causal, align="top_left", dropout_p=dropout_p, **scores)
    out = out.transpose(1, 2)
    return out if _has_shape(out, shape) else out.view(shape)


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _shown(shape):
    return "that of a traced tensor" if torch.compiler.is_compiling() else list(shape)


def _check_options(is_causal, enable_gqa):
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is {flag!r}; it must be True or False")


def _check_tensors(query, key, value, attn_mask):
    for name, tensor in (("query", query), ("key", key), ("value", value), ("attn_mask", attn_mask)):
        if tensor is not None and tensor.dim() < 2:
            raise InvalidArgument(f"{name} has rank {tensor.dim()}; it must be 2 or more")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise InvalidArgument(f"{name}.dtype is {tensor.dtype} but query.dtype is {query.dtype}")
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedError(f"query.dtype is {query.dtype}; foveal supports float32, bfloat16 and float16")
    if query.shape[-1] != key.shape[-1]:
        raise InvalidArgument(f"key.shape is {_shown(key.shape)}; its last size must be query's")
    if key.shape[-2] != value.shape[-2]:
        raise InvalidArgument(f"value.shape is {_shown(value.shape)}; its second last size must be key's")


def _check_mask_and_causal(query, key, value, attn_mask, enable_gqa):
    shared = key.shape[:-2] == value.shape[:-2] and query.shape[0] == key.shape[0]
    same = shared and (enable_gqa or query.shape[1:-2] == key.shape[1:-2]) and query.shape[-1] == value.shape[-1]
    if query.dim() != 4 or key.dim() != 4 or not same or attn_mask.dim() not in (2, 4):
        raise InvalidArgument(
            "attn_mask is given and is_causal is True; PyTorch takes both for tensors of rank 4 without broadcasting, "
            "with d_v = d and a mask of rank 2 or 4"
        )


# ---- Shapes ----------------------------------------------------------------------------------------------------------


def _are_heads(query, key, value, enable_gqa):
    """Are they as foveal takes them, but for the order of dimensions? Most are, and an eager call has little time."""
    if torch.compiler.is_compiling() or not query.dim() == key.dim() == value.dim() == 4:
        return False
    (b, h_q), (b_k, h_k) = query.shape[:2], key.shape[:2]
    same = b == b_k and key.shape[:2] == value.shape[:2] and h_q != 0 and h_k != 0
    return same and (h_q == h_k or (enable_gqa and h_q % h_k == 0))


def _as_heads(query, key, value, enable_gqa):
    """(q, k, v, batch): tensors [..., heads, s, d], with as many heads as foveal takes, and what precedes heads."""
    if enable_gqa:
        _check_groups(query, key, value)
    q, k, v = (x if x.dim() > 2 else x[None] for x in (query, key, value))
    if not enable_gqa:
        heads = _broadcast(query, key, value, sizes=[x.shape[-3:-2] for x in (q, k, v)])[0]
        q = _expanded(q, *q.shape[:-3], heads, *q.shape[-2:])
        if k.shape[-3] != v.shape[-3]:  # else they are one head for all, or `heads`
            k, v = (x.expand(*x.shape[:-3], heads, -1, -1) for x in (k, v))
    batch = _broadcast(query, key, value, sizes=[x.shape[:-3] for x in (q, k, v)])
    return q, k, v, batch or (1,)


def _check_groups(query, key, value):
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 3:
            raise InvalidArgument(f"{name} has rank {tensor.dim()}, and enable_gqa is True; it must have heads")
    heads = query.shape[-3]
    for name, tensor in (("key", key), ("value", value)):
        if (heads != 0) if tensor.shape[-3] == 0 else (heads % tensor.shape[-3] != 0):
            raise InvalidArgument(f"{name}.shape is {_shown(tensor.shape)}; its heads must divide query's {heads}")
    if key.shape[-3] != value.shape[-3]:
        raise UnsupportedError(f"value.shape is {_shown(value.shape)}; foveal supports as many heads as key's")


def _has_shape(tensor, shape):
    """Then there is nothing to do, and no node of autograd to pay for; a trace is to hold for other shapes too."""
    return not torch.compiler.is_compiling() and tensor.shape == shape


def _expanded(tensor, *shape):
    return tensor if _has_shape(tensor, shape) else tensor.expand(shape)


def _broadcast(query, key, value, sizes):
    if not torch.compiler.is_compiling() and sizes[0] == sizes[1] == sizes[2]:
        return tuple(sizes[0])
    try:
        return tuple(torch.broadcast_shapes(*sizes))
    except RuntimeError:
        shapes = ", ".join(str(_shown(x.shape)) for x in (query, key, value))
        raise InvalidArgument(f"query, key and value have the shapes {shapes}; they do not broadcast") from None


def _joined(tensor, name, batch):
    """[*batch, ., ., .] as [b, ., ., .], expanded, without a copy."""
    tensor = _expanded(tensor, *batch, *tensor.shape[-3:])
    if len(batch) == 1:
        return tensor
    sizes = [(size, stride) for size, stride in zip(batch, tensor.stride()[:-3], strict=True) if size != 1]
    if any(outer != size * stride for (_, outer), (size, stride) in zip(sizes, sizes[1:], strict=False)):
        raise UnsupportedError(
            f"{name} has shape {_shown(tensor.shape)}; foveal supports several batch dimensions where they are one in "
            f"memory: reshape() {name}"
        )
    return tensor.view(math.prod(batch), *tensor.shape[-3:])


def _as_scores(mask, query, key, batch, heads):
    """attn_mask as [b or 1, h_q or 1, s_q or 1, s_k or 1]."""
    if mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise InvalidArgument(f"attn_mask.dtype is {mask.dtype}; it must be bool, float32 or query's {query.dtype}")
    rank = max(query.dim(), key.dim())
    leading = (*batch, heads)[len(batch) + 3 - rank :] if rank > 2 else ()
    wanted = (*leading, query.shape[-2], key.shape[-2])
    fits = mask.dim() <= rank
    for size, most in zip(reversed(mask.shape), reversed(wanted), strict=False):
        fits = fits and (size == 1 or size == most)
    if not fits:
        raise InvalidArgument(f"attn_mask.shape is {_shown(mask.shape)}; it must broadcast to {_shown(wanted)}")
    mask = mask[(None,) * (len(batch) + 3 - mask.dim())]
    is_shared = all(size == 1 for size in mask.shape[:-3])
    return _joined(mask, "attn_mask", (1,) * len(batch) if is_shared else batch)


# ---- In place of PyTorch's -------------------------------------------------------------------------------------------


class FallbackWarning(UserWarning):
    """A call of scaled_dot_product_attention went to PyTorch's own: the message says why."""


@dataclasses.dataclass(eq=False)
class _Request:
    strict: bool
    is_installed: bool  # by install(); else by sdpa_replaced()


_MOST_REASONS = 256  # that are told apart: some have shapes in them
_OTHER_REASONS = "other reasons"

_pytorch_sdpa = functional.scaled_dot_product_attention
_lock = threading.Lock()
_requests: list[_Request] = []  # the newest is the last, and counts
_before = [_pytorch_sdpa]  # what stood there before the first of them
_fallbacks: collections.Counter[str] = collections.Counter()


def _replacement(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    requests = _requests[-1:]  # another thread may take the last one away
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if requests:
        try:
            return sdpa(query, key, value, attn_mask, **options)
        except (InvalidArgument, UnsupportedError, NoDeviceError) as error:
            if requests[0].strict:
                raise
            _record(error.args[0])
    return _pytorch_sdpa(query, key, value, attn_mask, **options)


@torch.compiler.assume_constant_result
def _record(reason):
    with _lock:
        is_new = reason not in _fallbacks
        if is_new and len(_fallbacks) >= _MOST_REASONS:
            is_new, reason = False, _OTHER_REASONS
        _fallbacks[reason] += 1
    if is_new:
        message = f"scaled_dot_product_attention is PyTorch's own, not foveal's: {reason}"
        warnings.warn(message, FallbackWarning, stacklevel=3)


def _add(request):
    with _lock:
        if not _requests:
            _before[0] = functional.scaled_dot_product_attention
            functional.scaled_dot_product_attention = _replacement
        _requests.append(request)


def _remove(request):
    with _lock:
        _requests.remove(request)
        # Where somebody has put a function of theirs over this one, it stays; what it calls here is PyTorch's then.
        if not _requests and functional.scaled_dot_product_attention is _replacement:
            functional.scaled_dot_product_attention = _before[0]


@contextlib.contextmanager
def sdpa_replaced(*, strict: bool = False) -> Iterator[None]:
    """While it is entered, torch.nn.functional.scaled_dot_product_attention is computed by foveal, in all threads.

    It may be nested and entered by several threads: PyTorch's function is back when the last one leaves, however it
    does. strict: calls that foveal cannot do raise; else they go to PyTorch's own, are warned of and counted. Where two
    are entered, the newest counts.
    """
    request = _Request(strict, is_installed=False)
    _add(request)
    try:
        yield
    finally:
        _remove(request)


def install(*, strict: bool = False) -> None:
    """sdpa_replaced() until uninstall(). strict: as there."""
    _add(_Request(strict, is_installed=True))


def uninstall() -> None:
    """Takes back the last install(). Raises RuntimeError if there is none."""
    installed = [request for request in tuple(_requests) if request.is_installed]
    if not installed:
        raise RuntimeError("uninstall() without install()")
    _remove(installed[-1])


def fallbacks() -> dict[str, int]:
    """How many calls went to PyTorch's own, by reason: {reason: calls}. Code under torch.compile counts when traced."""
    with _lock:
        return dict(_fallbacks)


def clear_fallbacks() -> None:
    """Forgets what fallbacks() tells; each reason is warned of anew."""
    with _lock:
        _fallbacks.clear()
