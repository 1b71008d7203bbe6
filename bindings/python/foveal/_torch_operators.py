"""The operators of foveal.torch: their schemas, their kernels, those for fake tensors and those that record a gradient,
registered with PyTorch's dispatcher when this module is imported."""

import functools

import foveal
import torch
from foveal import _foveal
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

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


GRADIENTS = ("q", "k", "v", "sinks", "bias", "alibi_slopes")  # in the order of the extension


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
    of = (q, k, v, *(options.get(name) for name in GRADIENTS[3:]))
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


@functools.cache
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
        wanted = [needed.get(name, False) for name in GRADIENTS]
        if dout is None:
            dout = torch.zeros_like(main[3])
        backward = torch.ops.foveal.attention_backward
        gradients = backward(dout, dlse, *main, *lengths, wanted, **saved, **ctx.numbers)
        of = {name: gradient for name, gradient, asked in zip(GRADIENTS, gradients, wanted, strict=True) if asked}
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
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}

    def kernel(*args, **kwargs):
        recorded = False
        for name, tensor in _named_tensors(names, args, kwargs):
            _refuse_tangent(name, tensor)
            recorded |= tensor.requires_grad and torch.is_grad_enabled()
        if not recorded:
            return _below_autograd(operator, *args, **kwargs)
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
