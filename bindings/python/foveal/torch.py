"""foveal in PyTorch's dispatcher, for torch.compile, torch.export and fake tensors. Importing this module registers

    torch.ops.foveal.attention          (q, k, v, *, ...) -> out
    torch.ops.foveal.attention_lse      (q, k, v, *, ...) -> (out, lse)
    torch.ops.foveal.attention_varlen             (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> out
    torch.ops.foveal.attention_varlen_lse         (q, k, v, cu_seqlens_q, cu_seqlens_k, *, ...) -> (out, lse)

with the options of foveal.attention, the window as window_left and window_right. attention() and attention_varlen()
here take the arguments of foveal.attention() and foveal.attention_varlen(): while torch.compile traces they are these
operators, otherwise foveal's own functions, which cost less host time. No backward yet: a tensor that requires a
gradient raises foveal.UnsupportedError.
"""

import foveal
import torch

__all__ = ["attention", "attention_varlen"]

_library = torch.library.Library("foveal", "DEF")

_TENSORS = "Tensor q, Tensor k, Tensor v"
_LENGTHS = ", Tensor cu_seqlens_q, Tensor cu_seqlens_k"
_OPTIONS = (
    "float? scale=None, bool causal=False, SymInt? window_left=None, SymInt? window_right=None, "
    'str align="bottom_right", float softcap=0.0, SymInt chunk=0, Tensor? alibi_slopes=None, Tensor? sinks=None, '
    "Tensor? seqused_q=None, Tensor? seqused_k=None"
)
_SCORE_OPTIONS = ", Tensor? bias=None, Tensor? mask=None"


def _options(window_left=None, window_right=None, **options):
    return {"window": (window_left, window_right), **options}


def _dense(q, k, v, **options):
    return foveal.attention(q, k, v, **_options(**options))


def _dense_lse(q, k, v, **options):
    return foveal.attention(q, k, v, return_lse=True, **_options(**options))


def _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    return foveal.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **_options(**options))


def _varlen_lse(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    return foveal.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, return_lse=True, **_options(**options))


def _fake_out(q, v):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _fake_lse(q):  # [b, s, h, d] -> [b, h, s], [total, h, d] -> [h, total]
    return q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=torch.float32)


def _refuse_gradients(operator):
    """The operator's kernel for the Autograd key: raises if a gradient is asked for, else goes on below."""

    def kernel(*args, **kwargs):
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, torch.Tensor) and argument.requires_grad and torch.is_grad_enabled():
                raise foveal.UnsupportedError(
                    f"an argument of {operator} requires a gradient, and foveal has no backward yet: detach() it, or "
                    "call under torch.no_grad() or torch.inference_mode()"
                )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args, **kwargs)

    return kernel


def _register(name, arguments, returns, kernel, fake):
    _library.define(f"{name}({arguments}) -> {returns}", tags=(torch.Tag.needs_exact_strides,))
    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)
    torch.library.register_fake(f"foveal::{name}", fake, lib=_library)
    _library.impl(name, _refuse_gradients(getattr(torch.ops.foveal, name).default), "Autograd")


def _register_form(name, arguments, kernel, kernel_lse):
    def fake(q, k, v, *lengths, **options):
        return _fake_out(q, v)

    def fake_lse(q, k, v, *lengths, **options):
        return _fake_out(q, v), _fake_lse(q)

    _register(name, arguments, "Tensor", kernel, fake)
    _register(f"{name}_lse", arguments, "(Tensor, Tensor)", kernel_lse, fake_lse)


_register_form("attention", f"{_TENSORS}, *, {_OPTIONS}{_SCORE_OPTIONS}", _dense, _dense_lse)
_register_form("attention_varlen", f"{_TENSORS}{_LENGTHS}, *, {_OPTIONS}", _varlen, _varlen_lse)


def _operator_options(window=(None, None), **options):
    return {"window_left": window[0], "window_right": window[1], **options}


def attention(q, k, v, *, return_lse=False, **options):
    """foveal.attention(), but for `out`, in a form that torch.compile can trace. Shapes, units, errors: as there."""
    if not torch.compiler.is_compiling():
        return foveal.attention(q, k, v, return_lse=return_lse, **options)
    operator = torch.ops.foveal.attention_lse if return_lse else torch.ops.foveal.attention
    return operator(q, k, v, **_operator_options(**options))


def attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, *, return_lse=False, **options):
    """foveal.attention_varlen(), but for `out`, in a form that torch.compile can trace."""
    if not torch.compiler.is_compiling():
        return foveal.attention_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, return_lse=return_lse, **options)
    operator = torch.ops.foveal.attention_varlen_lse if return_lse else torch.ops.foveal.attention_varlen
    return operator(q, k, v, cu_seqlens_q, cu_seqlens_k, **_operator_options(**options))
