"""How the gradient of a plain eager call is recorded: one node of PyTorch's autograd over the extension's two passes,
past the dispatcher, whose operators (foveal.torch) cost several times their host time."""

import torch
from foveal import _foveal


def _gradients(ctx, dout, dlse=None):
    q, k, v, sinks, bias, alibi_slopes, out, lse, cu_seqlens_q, cu_seqlens_k, *others = ctx.saved_tensors
    mask, seqused_q, seqused_k, query_offset, tree_mask, dropout_state = others
    scale, window, align, softcap, chunk, dropout_p, dropout_numbers = ctx.numbers
    if dout is None:
        if dlse is None:
            return (None,) * 9
        dout = torch.zeros_like(out)
    if dropout_state is None:
        dropout_state = dropout_numbers
    if torch.compiler.is_compiling():  # compiled autograd, which traces operators alone
        return (*_by_operator(ctx, dout, dlse, dropout_state), None, None, None)
    first = (_readable(dout), _readable(dlse), out, lse, ctx.needs_input_grad[:6])
    tensors = (q, k, v, cu_seqlens_q, cu_seqlens_k)
    scores = (scale, False, window, align, softcap, chunk, alibi_slopes, sinks, bias, mask)  # causal: in the window
    last = (seqused_q, seqused_k, None, None, None, query_offset, tree_mask, None, dropout_p, dropout_state)
    return (*_foveal.attention_backward(*first, *tensors, *scores, *last, False), None, None, None)


def _by_operator(ctx, dout, dlse, dropout_state):
    from foveal.torch import _dropout_state  # which imports what an eager call does without

    q, k, v, sinks, bias, alibi_slopes, out, lse, cu_seqlens_q, cu_seqlens_k, *others = ctx.saved_tensors
    mask, seqused_q, seqused_k, query_offset, tree_mask, _ = others
    scale, (left, right), align, softcap, chunk, dropout_p, _ = ctx.numbers
    wanted = ctx.needs_input_grad[:6]
    gradients = torch.ops.foveal.attention_backward(
        *(dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, list(wanted)),
        **{"scale": scale, "window_left": left, "window_right": right, "align": align, "softcap": softcap},
        **{"chunk": chunk, "alibi_slopes": alibi_slopes, "sinks": sinks, "bias": bias, "mask": mask},
        **{"seqused_q": seqused_q, "seqused_k": seqused_k, "query_offset": query_offset, "tree_mask": tree_mask},
        **{"dropout_p": dropout_p, "dropout_state": _dropout_state(q, dropout_p, dropout_state)},
    )
    return tuple(gradient if asked else None for gradient, asked in zip(gradients, wanted, strict=True))


def _readable(gradient):
    """With memory that says what its elements are, the last of which lie one behind the other."""
    if gradient is None:
        return None
    if gradient._is_zerotensor():
        return torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device)
    if gradient.is_neg():
        gradient = gradient.resolve_neg()
    return gradient if gradient.stride(-1) == 1 else gradient.contiguous()


_gradients_once = torch.autograd.function.once_differentiable(_gradients)


class FovealAttention(torch.autograd.Function):
    """Of a call that the extension has done, whose results are the first of `saved`: (out, lse, ...)."""

    @staticmethod
    def forward(ctx, q, k, v, sinks, bias, alibi_slopes, wants_lse, saved, numbers):
        ctx.save_for_backward(q, k, v, sinks, bias, alibi_slopes, *saved)
        ctx.numbers = numbers
        ctx.set_materialize_grads(False)
        return saved[:2] if wants_lse else saved[0]

    @staticmethod
    def backward(ctx, *gradients):
        # once_differentiable() costs as much as the rest here, and does something only for create_graph=True.
        return (_gradients_once if torch.is_grad_enabled() else _gradients)(ctx, *gradients)


# Function.apply() itself, without what it adds for torch.func, whose calls go to the dispatcher.
record = super(torch.autograd.Function, FovealAttention).apply
