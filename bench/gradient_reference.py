"""What gradients should be: the textbook's, in float32 on sampled heads; and how far others are from them."""

import torch
from cases import NotMeasured


def _heads(case, x, i, heads):
    """These heads of sequence i, [h, s, d], float32."""
    first = sum(case.lengths_q[:i])
    own = x[first : first + case.lengths_q[i]] if case.varlen else x[i]
    return own[:, heads].detach().transpose(0, 1).float()


@torch.no_grad()
def kept_weights(case, forward, v, i, heads):
    """bool [h, s_q, s_k]: which weights of sequence i dropout leaves, by the forward pass of unit vectors as v."""
    parts = []
    for first in range(0, case.lengths_k[i], case.head_dim_v):
        n = min(case.head_dim_v, case.lengths_k[i] - first)
        unit = torch.zeros_like(v)
        unit[:, first : first + n, :, :n] = torch.eye(n, dtype=v.dtype, device=v.device)[:, None]
        parts.append(_heads(case, forward(unit), i, heads)[..., :n] > 0)
    return torch.cat(parts, dim=-1)


def textbook(case, tensors, dout, i, kv, forward=None):
    """The gradients of KV head kv of sequence i and of its query heads, float32 [h, s, d]; and these heads.

    forward: of any v, which says what dropout keeps."""
    group = case.heads_q // case.heads_k
    of_q, of_k = slice(kv * group, (kv + 1) * group), slice(kv, kv + 1)
    q, k, v = (_heads(case, x, i, h).requires_grad_() for x, h in zip(tensors, (of_q, of_k, of_k), strict=True))
    behind = torch.arange(case.lengths_q[i], device=q.device)[:, None] - torch.arange(len(k[0]), device=q.device)
    left, right = case.window
    hidden = torch.zeros_like(behind, dtype=torch.bool) if left is None else behind > left
    hidden = hidden if right is None else hidden | (behind < -right)
    weights = (q @ k.mT * case.head_dim**-0.5).masked_fill(hidden, float("-inf")).softmax(-1)
    if dropped := case.fields["dropout"]:
        weights = weights * kept_weights(case, forward, tensors[2], i, of_q) / (1 - dropped)
    return torch.autograd.grad(weights @ v, (q, k, v), _heads(case, dout, i, of_q)), (of_q, of_k, of_k)


def apart(found, expected):
    """The largest of the gradients' distances, over the norm of what is expected; not a number if one is."""
    distances = [(a.float() - b.float()).norm() / b.float().norm() for a, b in zip(found, expected, strict=True)]
    return torch.stack(distances).max().item()


def errors_of(case, tensors, dout, results, forward=None):
    """name -> distance from the textbook. results: name -> dq, dk, dv."""
    if not case.square or (case.varlen and case.fields["dropout"]):
        raise NotMeasured(f"{case.text}: not as many queries as keys, or dropout in packed sequences")
    errors = dict.fromkeys(results, 0.0)
    for i, kv in sorted({(0, 0), (case.batch - 1, case.heads_k - 1)}):
        expected, heads = textbook(case, tensors, dout, i, kv, forward)
        for name, found in results.items():
            own = [_heads(case, x, i, h) for x, h in zip(found, heads, strict=True)]
            errors[name] = max(errors[name], apart(own, expected), key=lambda x: (x != x, x))
    return errors
