"""foveal in PyTorch's dispatcher, for torch.compile, torch.export, torch.jit.trace, make_fx, torch.func.vmap and fake
tensors. Importing this module registers

    torch.ops.foveal.attention          (q, k, v, *, ...) -> out
    torch.ops.foveal.attention_lse      (q, k, v, *, ...) -> (out, lse)
    torch.ops.foveal.attention_varlen             (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> out
    torch.ops.foveal.attention_varlen_lse         (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> (out, lse)
    torch.ops.foveal.attention_backward (dout, dlse, q, k, v, out, lse, ...) -> the six gradients
    torch.ops.foveal.merge              (outs, lses) -> (out, lse)
    torch.ops.foveal.append             (k, v, k_cache, v_cache, *, ...) -> (), writes the caches
    torch.ops.foveal.append_q           (k, v, k_cache, v_cache, q, *, ...) -> q_out, writes the caches
    torch.ops.foveal.copy_pages         (k_cache, v_cache, pairs) -> (), writes the caches
    torch.ops.foveal.gather             (k_cache, v_cache, cu_seqlens_k, total_k, *, ...) -> (k, v)

with the options of foveal.attention, the window as window_left and window_right. The functions here take the arguments
of foveal's of these names, and torch.compile can trace them: they are these operators then, otherwise foveal's
own functions, which cost less host time and go to the operators by themselves where PyTorch watches (a trace, a
TorchDispatchMode, a transform of torch.func, tensors of other types or without memory of their own). A gradient that is
recorded elsewhere is one node of autograd over them (FovealAttention). q, k, v, sinks, bias and alibi_slopes have
gradients, also through the log-sum-exp, but not in pages, and no second derivatives; the others, and a tensor with
a tangent of forward-mode AD, raise foveal.UnsupportedError.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Literal, overload

import foveal
import torch
from foveal._torch_operators import GRADIENTS

__all__ = ["append", "attention", "attention_varlen", "copy_pages", "gather", "merge"]


def _drawn_dropout_state(q):
    """A seed and an offset from PyTorch's generator of q's device: torch.manual_seed() makes them repeatable."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=q.device)


def _dropout_state(q, dropout_p, state):
    """As an operator takes it, int64 [2] on q's device; None without dropout."""
    if state is None:
        return _drawn_dropout_state(q) if dropout_p > 0 else None
    if isinstance(state, (tuple, list)):
        signed = [(number + 2**63) % 2**64 - 2**63 for number in state]
        return torch.tensor(signed, dtype=torch.int64, device=q.device)
    return state


def _operator_options(window=(None, None), workspace=None, **options):
    left, right = (None, None) if window is None else window
    memory = workspace.tensor if isinstance(workspace, foveal.Workspace) else workspace
    return {"window_left": left, "window_right": right, "workspace": memory, **options}


_TENSOR_NAMES = (
    *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "dout", "dlse", "out", "lse"),
    *("alibi_slopes", "sinks", "seqused_q", "seqused_k", "bias", "mask", "q_descale", "k_descale", "v_descale"),
    *("k_cache", "v_cache", "slot_mapping", "cache_lengths", "cu_seqlens", "block_table", "cos", "sin", "positions"),
    *("pairs", "k_scale", "v_scale", "k_scale_out", "v_scale_out", "page_indptr", "page_indices", "query_offset"),
    *("tree_mask", "workspace", "dropout_state"),
)


@functools.cache
def _parameters(function):
    """The names of its parameters, which inspect reads in a millisecond off the text of a compiled function."""
    return tuple(inspect.signature(function).parameters)


def _through_dispatcher(operator, results, arguments, options):
    """For calls that are not plain eager ones; what no operator could take is refused by name."""
    for name, tensor in results.items():
        if tensor is not None:
            raise foveal.UnsupportedError(
                f"{name} is given, and PyTorch watches this call (a gradient, a trace, a TorchDispatchMode, a tensor "
                f"without memory of its own); foveal writes to {name} in plain eager calls only: copy_() the result "
                "into it"
            )
    given = {**arguments, **options}
    tensors = {name: given.get(name) for name in _TENSOR_NAMES if given.get(name) is not None}
    for name in ("outs", "lses"):
        tensors |= {f"{name}[{i}]": part for i, part in enumerate(given.get(name, ()))}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} is of type {type(tensor).__name__}, and PyTorch watches this call (a trace, a "
                "TorchDispatchMode, a tensor without memory of its own); all tensors must be PyTorch's then"
            )
    try:
        return operator(*arguments.values(), **options)
    except foveal.Error:
        raise
    except (NotImplementedError, RuntimeError) as error:
        types = ", ".join(dict.fromkeys(f"{name} a {type(tensor).__name__}" for name, tensor in tensors.items()))
        reason = str(error).partition("\n")[0]
        raise foveal.UnsupportedError(f"{operator} cannot take these tensors ({types}): {reason}") from error


# Called by the extension, with the arguments of foveal's functions by position.
def _attention(*arguments):
    return _forward(torch.ops.foveal.attention, torch.ops.foveal.attention_lse, 3, foveal.attention, arguments)


def _attention_varlen(*arguments):
    operators = torch.ops.foveal.attention_varlen, torch.ops.foveal.attention_varlen_lse
    return _forward(*operators, 5, foveal.attention_varlen, arguments)


def _forward(operator, operator_lse, tensors, function, values):
    given = dict(zip(_parameters(function), values, strict=True))
    return_lse, out = given.pop("return_lse"), given.pop("out")
    given["dropout_state"] = _dropout_state(given["q"], given["dropout_p"], given["dropout_state"])
    names = list(given)
    options = _operator_options(**{name: given[name] for name in names[tensors:]})
    arguments = {name: given[name] for name in names[:tensors]}
    return _through_dispatcher(operator_lse if return_lse else operator, {"out": out}, arguments, options)


def _attention_backward(*values):
    names = ("dout", "dlse", "out", "lse", "wanted", *_parameters(foveal.supports))
    given = dict(zip(names, values, strict=False))
    first = ("dout", "dlse", "q", "k", "v", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "wanted")
    arguments = {name: given.pop(name) for name in first}
    if given["dropout_state"] is not None:  # none is drawn: it would be another than the forward call's
        given["dropout_state"] = _dropout_state(arguments["q"], given["dropout_p"], given["dropout_state"])
    operator = torch.ops.foveal.attention_backward
    gradients = _through_dispatcher(operator, {}, arguments, _operator_options(**given))
    of = (*(arguments[name] for name in "qkv"), *(given[name] for name in GRADIENTS[3:]))
    return tuple(
        gradient if asked and tensor is not None else None
        for gradient, tensor, asked in zip(gradients, of, arguments["wanted"], strict=True)
    )


def _merge(outs, lses, out, lse):
    arguments = {"outs": list(outs), "lses": list(lses)}
    return _through_dispatcher(torch.ops.foveal.merge, {"out": out, "lse": lse}, arguments, {})


def _append(*values):
    given = dict(zip(_parameters(foveal.append), values, strict=True))
    q, q_out = given.pop("q"), given.pop("q_out")
    arguments = {name: given.pop(name) for name in ("k", "v", "k_cache", "v_cache")}
    if q is None:
        return _through_dispatcher(torch.ops.foveal.append, {"q_out": q_out}, arguments, given)
    return _through_dispatcher(torch.ops.foveal.append_q, {"q_out": q_out}, {**arguments, "q": q}, given)


def _copy_pages(k_cache, v_cache, pairs):
    named = {"k_cache": k_cache, "v_cache": v_cache, "pairs": pairs}
    return _through_dispatcher(torch.ops.foveal.copy_pages, {}, named, {})


def _gather(*values):
    given = dict(zip(_parameters(foveal.gather), values, strict=True))
    results = {name: given.pop(name) for name in ("k", "v")}
    arguments = {name: given.pop(name) for name in ("k_cache", "v_cache", "cu_seqlens_k", "total_k")}
    return _through_dispatcher(torch.ops.foveal.gather, results, arguments, given)


# A graph of torch.compile may hold foveal's own functions: run on its fake tensors, they are the operators.
for _name in ("append", "attention", "attention_varlen", "copy_pages", "gather", "merge"):
    torch.compiler.allow_in_graph(getattr(foveal, _name))


@overload
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: Literal[False] = False, **options: Any
) -> torch.Tensor: ...
@overload
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: Literal[True], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: bool, **options: Any) -> Any: ...
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, return_lse: bool = False, **options: Any) -> Any:
    """foveal.attention(), but for `out`, in a form that torch.compile can trace. Shapes, units, errors: as there."""
    if not torch.compiler.is_compiling():
        options["return_lse"] = return_lse
        return foveal.attention(q, k, v, **options)
    if options.get("dropout_p", 0.0) > 0:
        options["dropout_state"] = _dropout_state(q, options["dropout_p"], options.get("dropout_state"))
    operator = torch.ops.foveal.attention_lse if return_lse else torch.ops.foveal.attention
    return operator(q, k, v, **_operator_options(**options))


@overload
def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None,
    *,
    return_lse: Literal[False] = False,
    **options: Any,
) -> torch.Tensor: ...
@overload
def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None,
    *,
    return_lse: Literal[True],
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]: ...
@overload
def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None,
    *,
    return_lse: bool,
    **options: Any,
) -> Any: ...
def attention_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor | None,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Any:
    """foveal.attention_varlen(), but for `out`, in a form that torch.compile can trace."""
    if not torch.compiler.is_compiling():
        options["return_lse"] = return_lse
        return foveal.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options)
    if options.get("dropout_p", 0.0) > 0:
        options["dropout_state"] = _dropout_state(q, options["dropout_p"], options.get("dropout_state"))
    operator = torch.ops.foveal.attention_varlen_lse if return_lse else torch.ops.foveal.attention_varlen
    return operator(q, k, v, cu_seqlens_q, cu_seqlens_k, **_operator_options(**options))


def merge(outs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """foveal.merge(), but for `out` and `lse`, in a form that torch.compile can trace."""
    return torch.ops.foveal.merge(outs, lses) if torch.compiler.is_compiling() else foveal.merge(outs, lses)


@overload
def append(
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    *,
    q: None = None,
    **options: Any,
) -> None: ...
@overload
def append(
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    *,
    q: torch.Tensor,
    **options: Any,
) -> torch.Tensor: ...
def append(
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    *,
    q: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor | None:
    """foveal.append(), but for `q_out`, in a form that torch.compile can trace: it writes the caches."""
    if not torch.compiler.is_compiling():
        options["q"] = q
        return foveal.append(k, v, k_cache, v_cache, **options)
    if q is None:
        return torch.ops.foveal.append(k, v, k_cache, v_cache, **options)
    return torch.ops.foveal.append_q(k, v, k_cache, v_cache, q, **options)


def copy_pages(k_cache: torch.Tensor | None, v_cache: torch.Tensor | None, pairs: torch.Tensor) -> None:
    """foveal.copy_pages() in a form that torch.compile can trace: it writes the caches."""
    (torch.ops.foveal if torch.compiler.is_compiling() else foveal).copy_pages(k_cache, v_cache, pairs)


def gather(
    k_cache: torch.Tensor, v_cache: torch.Tensor, cu_seqlens_k: torch.Tensor, *, total_k: int, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """foveal.gather(), but for `k` and `v`, in a form that torch.compile can trace."""
    if not torch.compiler.is_compiling():
        return foveal.gather(k_cache, v_cache, cu_seqlens_k, total_k=total_k, **options)
    return torch.ops.foveal.gather(k_cache, v_cache, cu_seqlens_k, total_k, **options)
