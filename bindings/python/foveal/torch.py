"""foveal in PyTorch's dispatcher, for torch.compile, torch.export, torch.jit.trace, make_fx, torch.func.vmap and fake
tensors. Importing this module registers

    torch.ops.foveal.attention          (q, k, v, *, ...) -> out
    torch.ops.foveal.attention_lse      (q, k, v, *, ...) -> (out, lse)
    torch.ops.foveal.attention_varlen             (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> out
    torch.ops.foveal.attention_varlen_lse         (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> (out, lse)
    torch.ops.foveal.merge              (outs, lses) -> (out, lse)
    torch.ops.foveal.append             (k, v, k_cache, v_cache, *, ...) -> (), writes the caches
    torch.ops.foveal.append_q           (k, v, k_cache, v_cache, q, *, ...) -> q_out, writes the caches
    torch.ops.foveal.copy_pages         (k_cache, v_cache, pairs) -> (), writes the caches
    torch.ops.foveal.gather             (k_cache, v_cache, cu_seqlens_k, total_k, *, ...) -> (k, v)

with the options of foveal.attention, the window as window_left and window_right. The functions here take the arguments
of foveal's of these names, and torch.compile can trace them: they are these operators then, otherwise foveal's
own functions, which cost less host time and go to the operators by themselves where PyTorch watches (a trace, a
TorchDispatchMode, tensors without memory of their own). No backward yet: a tensor that requires a gradient or has a
tangent raises foveal.UnsupportedError.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, overload

import foveal
import torch
from foveal import _foveal
from torch.autograd import forward_ad

__all__ = ["append", "attention", "attention_varlen", "copy_pages", "gather", "merge"]

_library = torch.library.Library("foveal", "DEF")

_TENSORS = "Tensor q, Tensor k, Tensor v"
_LENGTHS = ", Tensor cu_seqlens_q, Tensor? cu_seqlens_k"
_OPTIONS = (
    "float? scale=None, bool causal=False, SymInt? window_left=None, SymInt? window_right=None, "
    'str align="bottom_right", float softcap=0.0, SymInt chunk=0, Tensor? alibi_slopes=None, Tensor? sinks=None, '
    "Tensor? seqused_q=None, Tensor? seqused_k=None, Tensor? block_table=None, Tensor? page_indptr=None, "
    "Tensor? page_indices=None, Tensor? query_offset=None, Tensor? tree_mask=None, Tensor? workspace=None"
)
_SCORE_OPTIONS = ", Tensor? bias=None, Tensor? mask=None"


# The operators' kernels. True: the dispatcher has done its part.
def _run(
    tensors, return_lse, *, scale=None, causal=False, window_left=None, window_right=None, align="bottom_right",
    softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, seqused_q=None, seqused_k=None, bias=None, mask=None,
    block_table=None, page_indptr=None, page_indices=None, query_offset=None, tree_mask=None, workspace=None,
):  # fmt: skip
    first = (*tensors, scale, causal, (window_left, window_right), align, softcap, chunk, alibi_slopes, sinks)
    pages = (block_table, page_indptr, page_indices, query_offset, tree_mask, workspace)
    last = (seqused_q, seqused_k, *pages, return_lse, None, True)
    if len(tensors) == 3:
        return _foveal.attention_dispatched(*first, bias, mask, *last)
    return _foveal.attention_varlen_dispatched(*first, *last)


def _dense(q, k, v, **options):
    return _run((q, k, v), False, **options)


def _dense_lse(q, k, v, **options):
    return _run((q, k, v), True, **options)


def _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    return _run((q, k, v, cu_seqlens_q, cu_seqlens_k), False, **options)


def _varlen_lse(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    return _run((q, k, v, cu_seqlens_q, cu_seqlens_k), True, **options)


def _merge_parts(outs, lses):
    return _foveal.merge_dispatched(outs, lses, None, None, True)


def _append_rows(
    k, v, k_cache, v_cache, q=None, *, slot_mapping=None, cache_lengths=None, cu_seqlens=None, block_table=None,
    cos=None, sin=None, positions=None, interleaved=False, k_scale=None, v_scale=None,
):  # fmt: skip
    where = (slot_mapping, cache_lengths, cu_seqlens, block_table, cos, sin, positions, interleaved)
    return _foveal.append_dispatched(k, v, k_cache, v_cache, *where, q, None, k_scale, v_scale, True)


def _fake_append(k, v, k_cache, v_cache, q=None, **options):
    return None if q is None else q.new_empty(q.shape)


def _gather_rows(*caches, seqused_k=None, block_table=None, page_indptr=None, page_indices=None):
    return _foveal.gather_dispatched(*caches, seqused_k, block_table, page_indptr, page_indices, None, None, True)


def _fake_gather(k_cache, v_cache, cu_seqlens_k, total_k, **options):
    return k_cache.new_empty((total_k, *k_cache.shape[2:])), v_cache.new_empty((total_k, *v_cache.shape[2:]))


def _fake_out(q, v):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _fake_lse(q):  # [b, s, h, d] -> [b, h, s], [total, h, d] -> [h, total]
    return q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=torch.float32)


def _fake_merge(outs, lses):
    return outs[0].new_empty(outs[0].shape), lses[0].new_empty(lses[0].shape)


def _named_tensors(names, arguments, keywords):
    for name, argument in (*zip(names, arguments, strict=False), *keywords.items()):
        if isinstance(argument, torch.Tensor):
            yield name, argument
        elif isinstance(argument, (list, tuple)):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(argument) if isinstance(part, torch.Tensor))


def _refuse_derivatives(operator):
    """The operator's kernel for the Autograd key: raises if a derivative is asked for, else goes on below."""
    names = [argument.name for argument in operator._schema.arguments]

    def kernel(*args, **kwargs):
        for name, tensor in _named_tensors(names, args, kwargs):
            if tensor.requires_grad and torch.is_grad_enabled():
                raise foveal.UnsupportedError(
                    f"{name} requires a gradient, and foveal has no derivative yet: detach() it, or call under "
                    "torch.no_grad() or torch.inference_mode()"
                )
            if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
                raise foveal.UnsupportedError(
                    f"{name} has a tangent (it is a dual number of forward-mode AD), and foveal has no derivative yet: "
                    "detach() it"
                )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args, **kwargs)

    return kernel


def _register(name, arguments, returns, kernel, fake):
    _library.define(f"{name}({arguments}) -> {returns}", tags=(torch.Tag.needs_exact_strides,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"foveal::{name}", fake, lib=_library)
    _library.impl(name, _refuse_derivatives(getattr(torch.ops.foveal, name).default), "Autograd")


def _register_form(name, arguments, kernel, kernel_lse):
    def fake(q, k, v, *lengths, **options):
        return _fake_out(q, v)

    def fake_lse(q, k, v, *lengths, **options):
        return _fake_out(q, v), _fake_lse(q)

    _register(name, arguments, "Tensor", kernel, fake)
    _register(f"{name}_lse", arguments, "(Tensor, Tensor)", kernel_lse, fake_lse)


_register_form("attention", f"{_TENSORS}, *, {_OPTIONS}{_SCORE_OPTIONS}", _dense, _dense_lse)
_register_form("attention_varlen", f"{_TENSORS}{_LENGTHS}, *, {_OPTIONS}", _varlen, _varlen_lse)
_register("merge", "Tensor[] outs, Tensor[] lses", "(Tensor, Tensor)", _merge_parts, _fake_merge)

_CACHES = "Tensor? k, Tensor? v, Tensor(a!)? k_cache, Tensor(b!)? v_cache"
_APPEND_OPTIONS = (
    "*, Tensor? slot_mapping=None, Tensor? cache_lengths=None, Tensor? cu_seqlens=None, Tensor? block_table=None, "
    "Tensor? cos=None, Tensor? sin=None, Tensor? positions=None, bool interleaved=False, Tensor? k_scale=None, "
    "Tensor? v_scale=None"
)
_register("append", f"{_CACHES}, {_APPEND_OPTIONS}", "()", _append_rows, _fake_append)
_register("append_q", f"{_CACHES}, Tensor q, {_APPEND_OPTIONS}", "Tensor", _append_rows, _fake_append)
_COPIED = "Tensor(a!)? k_cache, Tensor(b!)? v_cache, Tensor pairs"
_register("copy_pages", _COPIED, "()", lambda *given: _foveal.copy_pages_dispatched(*given, True), lambda *given: None)
_GATHERED = (
    "Tensor k_cache, Tensor v_cache, Tensor cu_seqlens_k, SymInt total_k, *, Tensor? seqused_k=None, "
    "Tensor? block_table=None, Tensor? page_indptr=None, Tensor? page_indices=None"
)
_register("gather", _GATHERED, "(Tensor, Tensor)", _gather_rows, _fake_gather)


def _operator_options(window=(None, None), workspace=None, **options):
    left, right = (None, None) if window is None else window
    memory = workspace.tensor if isinstance(workspace, foveal.Workspace) else workspace
    return {"window_left": left, "window_right": right, "workspace": memory, **options}


_TENSOR_NAMES = (
    *("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k"),
    *("alibi_slopes", "sinks", "seqused_q", "seqused_k", "bias", "mask"),
    *("k_cache", "v_cache", "slot_mapping", "cache_lengths", "cu_seqlens", "block_table", "cos", "sin", "positions"),
    *("pairs", "k_scale", "v_scale", "page_indptr", "page_indices", "query_offset", "tree_mask", "workspace"),
)


def _through_dispatcher(operator, results, arguments, options):
    """For calls that are not plain eager ones; what no operator could take is refused by name."""
    for name, tensor in results.items():
        if tensor is not None:
            raise foveal.UnsupportedError(
                f"{name} is given, and PyTorch watches this call (a trace, a TorchDispatchMode, a tensor without "
                f"memory of its own); foveal writes to {name} in plain eager calls only: copy_() the result into it"
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
    given = dict(zip(inspect.signature(function).parameters, values, strict=True))
    return_lse, out = given.pop("return_lse"), given.pop("out")
    names = list(given)
    options = _operator_options(**{name: given[name] for name in names[tensors:]})
    arguments = {name: given[name] for name in names[:tensors]}
    return _through_dispatcher(operator_lse if return_lse else operator, {"out": out}, arguments, options)


def _merge(outs, lses, out, lse):
    arguments = {"outs": list(outs), "lses": list(lses)}
    return _through_dispatcher(torch.ops.foveal.merge, {"out": out, "lse": lse}, arguments, {})


def _append(*values):
    given = dict(zip(inspect.signature(foveal.append).parameters, values, strict=True))
    q, q_out = given.pop("q"), given.pop("q_out")
    arguments = {name: given.pop(name) for name in ("k", "v", "k_cache", "v_cache")}
    if q is None:
        return _through_dispatcher(torch.ops.foveal.append, {"q_out": q_out}, arguments, given)
    return _through_dispatcher(torch.ops.foveal.append_q, {"q_out": q_out}, {**arguments, "q": q}, given)


def _copy_pages(k_cache, v_cache, pairs):
    named = {"k_cache": k_cache, "v_cache": v_cache, "pairs": pairs}
    return _through_dispatcher(torch.ops.foveal.copy_pages, {}, named, {})


def _gather(*values):
    given = dict(zip(inspect.signature(foveal.gather).parameters, values, strict=True))
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
