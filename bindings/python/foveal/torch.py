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
TorchDispatchMode, tensors without memory of their own) or records a gradient. q, k, v, sinks, bias and alibi_slopes
have gradients, also through the log-sum-exp, but not in pages, and no second derivatives; the others, and a tensor with
a tangent of forward-mode AD, raise foveal.UnsupportedError.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, overload

import foveal
import torch
from foveal import _foveal
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

__all__ = ["append", "attention", "attention_varlen", "copy_pages", "gather", "merge"]

_library = torch.library.Library("foveal", "DEF")

_TENSORS = "Tensor q, Tensor k, Tensor v"
_LENGTHS = ", Tensor cu_seqlens_q, Tensor? cu_seqlens_k"
_OPTIONS = (
    "float? scale=None, bool causal=False, SymInt? window_left=None, SymInt? window_right=None, "
    'str align="bottom_right", float softcap=0.0, SymInt chunk=0, Tensor? alibi_slopes=None, Tensor? sinks=None, '
    "Tensor? seqused_q=None, Tensor? seqused_k=None, Tensor? block_table=None, Tensor? page_indptr=None, "
    "Tensor? page_indices=None, Tensor? query_offset=None, Tensor? tree_mask=None, Tensor? workspace=None, "
    "Tensor? q_descale=None, Tensor? k_descale=None, Tensor? v_descale=None, str? uint8_as=None, "
    "float dropout_p=0.0, Tensor? dropout_state=None"
)
_SCORE_OPTIONS = ", Tensor? bias=None, Tensor? mask=None"


# The operators' kernels. True: the dispatcher has done its part.
def _run(
    tensors, return_lse, *, scale=None, causal=False, window_left=None, window_right=None, align="bottom_right",
    softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, seqused_q=None, seqused_k=None, bias=None, mask=None,
    block_table=None, page_indptr=None, page_indices=None, query_offset=None, tree_mask=None, workspace=None,
    q_descale=None, k_descale=None, v_descale=None, uint8_as=None, dropout_p=0.0, dropout_state=None,
):  # fmt: skip
    first = (*tensors, scale, causal, (window_left, window_right), align, softcap, chunk, alibi_slopes, sinks)
    pages = (block_table, page_indptr, page_indices, query_offset, tree_mask, workspace)
    dropout, descales = (dropout_p, dropout_state), (q_descale, k_descale, v_descale)
    last = (seqused_q, seqused_k, *pages, *dropout, *descales, uint8_as, return_lse, None, True)
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


_GRADIENTS = ("q", "k", "v", "sinks", "bias", "alibi_slopes")  # in the order of the extension


def _gradients(
    dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, wanted, *, scale=None, causal=False, window_left=None,
    window_right=None, align="bottom_right", softcap=0.0, chunk=0, alibi_slopes=None, sinks=None, seqused_q=None,
    seqused_k=None, bias=None, mask=None, block_table=None, page_indptr=None, page_indices=None, query_offset=None,
    tree_mask=None, workspace=None, dropout_p=0.0, dropout_state=None,
):  # fmt: skip
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    if dlse is not None and dlse.stride(-1) != 1:
        dlse = dlse.contiguous()
    first = (dout, dlse, out, lse, tuple(wanted), q, k, v, cu_seqlens_q, cu_seqlens_k, scale, causal)
    scores = ((window_left, window_right), align, softcap, chunk, alibi_slopes, sinks, bias, mask)
    last = (seqused_q, seqused_k, block_table, page_indptr, page_indices, query_offset, tree_mask, workspace)
    gradients = _foveal.attention_backward(*first, *scores, *last, dropout_p, dropout_state, True)
    return tuple(q.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _fake_gradients(dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, wanted, **options):
    of = (q, k, v, *(options.get(name) for name in _GRADIENTS[3:]))
    return tuple(
        q.new_empty(tensor.shape, dtype=tensor.dtype) if asked and tensor is not None else q.new_empty(0)
        for tensor, asked in zip(of, wanted, strict=True)
    )


def _merge_parts(outs, lses):
    return _foveal.merge_dispatched(outs, lses, None, None, True)


def _append_rows(
    k, v, k_cache, v_cache, q=None, *, slot_mapping=None, cache_lengths=None, cu_seqlens=None, block_table=None,
    cos=None, sin=None, positions=None, interleaved=False, k_scale=None, v_scale=None, k_scale_out=None,
    v_scale_out=None, uint8_as=None,
):  # fmt: skip
    where = (slot_mapping, cache_lengths, cu_seqlens, block_table, cos, sin, positions, interleaved)
    scales = (k_scale, v_scale, k_scale_out, v_scale_out)
    return _foveal.append_dispatched(k, v, k_cache, v_cache, *where, q, None, *scales, uint8_as, True)


def _fake_append(k, v, k_cache, v_cache, q=None, **options):
    return None if q is None else q.new_empty(q.shape)


def _gather_rows(*caches, seqused_k=None, block_table=None, page_indptr=None, page_indices=None):
    return _foveal.gather_dispatched(*caches, seqused_k, block_table, page_indptr, page_indices, None, None, True)


def _fake_gather(k_cache, v_cache, cu_seqlens_k, total_k, **options):
    return k_cache.new_empty((total_k, *k_cache.shape[2:])), v_cache.new_empty((total_k, *v_cache.shape[2:]))


def _fake_out(q, v):
    of_e4m3 = q.dtype in (torch.float8_e4m3fn, torch.uint8)
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=torch.bfloat16 if of_e4m3 else q.dtype)


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


def _refuse_tangent(name, tensor):
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise foveal.UnsupportedError(
            f"{name} has a tangent (it is a dual number of forward-mode AD), and foveal has no forward-mode "
            "derivative: detach() it"
        )


def _names(operator):
    return [argument.name for argument in operator._schema.arguments]


def _below_autograd(operator, *args, **kwargs):
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args, **kwargs)


# The operators' kernels for the Autograd key.
def _refuse_derivatives(operator):
    """Raises if a derivative is asked for, else goes on below."""
    names = _names(operator)

    def kernel(*args, **kwargs):
        for name, tensor in _named_tensors(names, args, kwargs):
            if tensor.requires_grad and torch.is_grad_enabled():
                raise foveal.UnsupportedError(
                    f"{name} requires a gradient, and {operator.name()} has no derivative: detach() it, or call under "
                    "torch.no_grad() or torch.inference_mode()"
                )
            _refuse_tangent(name, tensor)
        return _below_autograd(operator, *args, **kwargs)

    return kernel


class _Recording:
    """attention_lse or attention_varlen_lse, its arguments by position, with what their gradient needs."""

    @staticmethod
    def forward(ctx, operator, *values):
        given = dict(zip(_names(operator), values, strict=True))
        out, lse = _below_autograd(operator, **given)
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        ctx.save_for_backward(*tensors.values(), out, lse)
        ctx.saved_names = (*tensors, "out", "lse")
        ctx.numbers = {name: value for name, value in given.items() if name not in tensors and value is not None}
        ctx.names = list(given)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout, dlse):
        if dout is None and dlse is None:
            return (None,) * (len(ctx.names) + 1)
        saved = dict(zip(ctx.saved_names, ctx.saved_tensors, strict=True))
        main = [saved.pop(name) for name in ("q", "k", "v", "out", "lse")]
        lengths = [saved.pop(name, None) for name in ("cu_seqlens_q", "cu_seqlens_k")]
        needed = dict(zip(ctx.names, ctx.needs_input_grad[1:], strict=True))
        wanted = [needed.get(name, False) for name in _GRADIENTS]
        if dout is None:
            dout = torch.zeros_like(main[3])
        backward = torch.ops.foveal.attention_backward
        gradients = backward(dout, dlse, *main, *lengths, wanted, **saved, **ctx.numbers)
        of = {name: gradient for name, gradient, asked in zip(_GRADIENTS, gradients, wanted, strict=True) if asked}
        return (None, *(of.get(name) for name in ctx.names))


class _Recorded(_Recording, torch.autograd.Function): ...


# Inside a transform of torch.func, whose level this kernel is called for.
class _RecordedAtLevel(_Recording, torch.autograd.function._SingleLevelFunction): ...


def _require_gradient(given):
    """What has no gradient is refused before the forward pass; of tensors without memory, whose sizes may be symbols,
    when the gradient is computed."""
    if isinstance(given["q"], FakeTensor):
        return
    window = given["window_left"], given["window_right"]
    names = "q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "scale", "causal"
    others = (
        *("align", "softcap", "chunk", "alibi_slopes", "sinks", "bias", "mask", "seqused_q", "seqused_k"),
        *("block_table", "page_indptr", "page_indices", "query_offset", "tree_mask"),
    )
    first, last = ([given.get(name) for name in part] for part in (names, others))
    dropout = given["dropout_p"], given.get("dropout_state")
    reason = _foveal.backward_supports(*first, window, *last, None, *dropout)
    if reason:
        raise foveal.UnsupportedError(
            f"a gradient is recorded, and there is none: {reason} (or call under torch.no_grad() or "
            "torch.inference_mode())"
        )


def _differentiable(operator, operator_lse):
    """Records what the gradient needs, if one is asked for: of both, what operator_lse computes."""
    names = _names(operator)

    def kernel(*args, **kwargs):
        recorded = False
        for name, tensor in _named_tensors(names, args, kwargs):
            _refuse_tangent(name, tensor)
            recorded |= tensor.requires_grad and torch.is_grad_enabled()
        if not recorded:
            return _below_autograd(operator, *args, **kwargs)
        defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
        given = defaults | dict(zip(names, args, strict=False)) | kwargs
        _require_gradient(given)
        if torch._C._are_functorch_transforms_active():
            with enable_single_level_autograd_function():
                out, lse = _RecordedAtLevel.apply(operator_lse, *given.values())
        else:
            out, lse = _Recorded.apply(operator_lse, *given.values())
        return (out, lse) if operator is operator_lse else out

    return kernel


def _register(name, arguments, returns, kernel, fake, autograd=None):
    _library.define(f"{name}({arguments}) -> {returns}", tags=(torch.Tag.needs_exact_strides,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"foveal::{name}", fake, lib=_library)
    _library.impl(name, autograd or _refuse_derivatives(getattr(torch.ops.foveal, name).default), "Autograd")


def _register_form(name, arguments, kernel, kernel_lse):
    def fake(q, k, v, *lengths, **options):
        return _fake_out(q, v)

    def fake_lse(q, k, v, *lengths, **options):
        return _fake_out(q, v), _fake_lse(q)

    def autograd(of):  # made when first called: an operator is there after it is registered
        kernels = []

        def first(*args, **kwargs):
            if not kernels:
                operators = (getattr(torch.ops.foveal, part).default for part in (of, f"{name}_lse"))
                kernels.append(_differentiable(*operators))
            return kernels[0](*args, **kwargs)

        return first

    _register(name, arguments, "Tensor", kernel, fake, autograd(name))
    _register(f"{name}_lse", arguments, "(Tensor, Tensor)", kernel_lse, fake_lse, autograd(f"{name}_lse"))


_register_form("attention", f"{_TENSORS}, *, {_OPTIONS}{_SCORE_OPTIONS}", _dense, _dense_lse)
_register_form("attention_varlen", f"{_TENSORS}{_LENGTHS}, *, {_OPTIONS}", _varlen, _varlen_lse)
_register(
    "attention_backward",
    f"Tensor dout, Tensor? dlse, {_TENSORS}, Tensor out, Tensor lse, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    f"bool[] wanted, *, {_OPTIONS}{_SCORE_OPTIONS}",
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
)
_register("merge", "Tensor[] outs, Tensor[] lses", "(Tensor, Tensor)", _merge_parts, _fake_merge)

_CACHES = "Tensor? k, Tensor? v, Tensor(a!)? k_cache, Tensor(b!)? v_cache"
_APPEND_OPTIONS = (
    "*, Tensor? slot_mapping=None, Tensor? cache_lengths=None, Tensor? cu_seqlens=None, Tensor? block_table=None, "
    "Tensor? cos=None, Tensor? sin=None, Tensor? positions=None, bool interleaved=False, Tensor? k_scale=None, "
    "Tensor? v_scale=None, Tensor(c!)? k_scale_out=None, Tensor(d!)? v_scale_out=None, str? uint8_as=None"
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
    *(
        "pairs",
        "k_scale",
        "v_scale",
        "k_scale_out",
        "v_scale_out",
        "page_indptr",
        "page_indices",
        "query_offset",
        "tree_mask",
        "workspace",
        "dropout_state",
    ),
)


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
    given = dict(zip(inspect.signature(function).parameters, values, strict=True))
    return_lse, out = given.pop("return_lse"), given.pop("out")
    given["dropout_state"] = _dropout_state(given["q"], given["dropout_p"], given["dropout_state"])
    names = list(given)
    options = _operator_options(**{name: given[name] for name in names[tensors:]})
    arguments = {name: given[name] for name in names[:tensors]}
    return _through_dispatcher(operator_lse if return_lse else operator, {"out": out}, arguments, options)


def _attention_backward(*values):
    names = ("dout", "dlse", "out", "lse", "wanted", *inspect.signature(foveal.supports).parameters)
    given = dict(zip(names, values, strict=False))
    first = ("dout", "dlse", "q", "k", "v", "out", "lse", "cu_seqlens_q", "cu_seqlens_k", "wanted")
    arguments = {name: given.pop(name) for name in first}
    if given["dropout_state"] is not None:  # none is drawn: it would be another than the forward call's
        given["dropout_state"] = _dropout_state(arguments["q"], given["dropout_p"], given["dropout_state"])
    operator = torch.ops.foveal.attention_backward
    gradients = _through_dispatcher(operator, {}, arguments, _operator_options(**given))
    of = (*(arguments[name] for name in "qkv"), *(given[name] for name in _GRADIENTS[3:]))
    return tuple(
        gradient if asked and tensor is not None else None
        for gradient, tensor, asked in zip(gradients, of, arguments["wanted"], strict=True)
    )


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
