"""Gradients of attention in PyTorch: its own derivative of the formula in float64 (the oracle), and the contract's
formulas in the precision of the inputs, whose error is the measure (1.10, 1.13)."""

import math

import numpy as np
import torch

MAX_FACTOR, NORM_FACTOR, LSE_TOLERANCE = 2, 1.2, 2e-5


def positions(q, k):
    s_q, s_k = q.shape[1], k.shape[1]
    return torch.arange(s_q)[:, None] + s_k - s_q, torch.arange(s_k)[None]


def scores(q, k, *, causal=False, window=(None, None), softcap=0.0, scale=None, alibi_slopes=None, bias=None, mask=None,
           chunk=0):  # fmt: skip
    """(x [b, h_q, s_q, s_k], -inf where the key is not seen; the tanh of the softcap)"""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    i, j = positions(q, k)
    x = torch.einsum("bihd,bjhd->bhij", q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    tanh = torch.tanh(x / softcap) if softcap else torch.zeros_like(x)
    if softcap:
        x = softcap * tanh
    if alibi_slopes is not None:
        x = x - alibi_slopes[..., None, None] * (i - j).abs()
    if bias is not None:
        x = x + bias
    seen = torch.ones(x.shape[-2:], dtype=torch.bool)
    if window[0] is not None:
        seen = seen & (j >= i - window[0])
    right = 0 if causal else window[1]
    if right is not None:
        seen = seen & (j <= i + right)
    if chunk:
        seen = seen & (i.div(chunk, rounding_mode="floor") == j // chunk)
    if mask is not None:
        seen = seen & mask
    return x.masked_fill(~seen, -torch.inf), tanh


def formula(q, k, v, *, sinks=None, **options):
    """(out, lse), as PyTorch differentiates it, in the precision of q."""
    x, _ = scores(q, k, **options)
    if sinks is not None:
        x = torch.cat([x, sinks[None, :, None, None].expand(*x.shape[:3], 1)], -1)
    lse = torch.logsumexp(x, -1)
    p = torch.where(x == -torch.inf, 0, torch.exp(x - torch.where(lse == -torch.inf, 0, lse)[..., None]))
    values = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    return torch.einsum("bhij,bjhd->bihd", p[..., : k.shape[1]], values), lse


def summed_to(x, shape):
    return x.sum([n for n in range(x.ndim) if shape[n] == 1 and x.shape[n] != 1], keepdim=True)


def contracts_gradients(tensors, wants_lse, options, draw, dtype=torch.float32, results=None):
    """The contract's formulas in float32; of 16-bit tensors with P and dS rounded for the products, and the gradients.

    draw: the channels in an order of their own, so that sums round otherwise. results: (out, lse) to start from.
    """
    rounded = lambda x: x.to(dtype).float()  # noqa: E731
    order, back = {}, {}
    for name in "qkv":
        channels = tensors[name].shape[-1]
        generator = torch.Generator().manual_seed(draw)
        order[name] = torch.randperm(channels, generator=generator) if draw else torch.arange(channels)
        back[name] = order[name].argsort()
    given = {name: x[..., order[name]] if name in order else x for name, x in tensors.items()}
    q, k, v = (given[name] for name in "qkv")
    others = {name: x for name, x in given.items() if name not in "qkv" and name != "sinks"}
    out, lse = formula(**given, **options) if results is None else (x.float() for x in results)
    out = out if results is None else out[..., order["v"]]
    dout, dlse = rounded(drawn(*out.shape, seed=7)), rounded(drawn(*lse.shape, seed=8))
    dout = dout[..., order["v"]]
    x, tanh = scores(q, k, **others, **options)
    p = torch.where(x == -torch.inf, 0, torch.exp(x - torch.where(lse == -torch.inf, 0, lse)[..., None]))
    group = q.shape[2] // k.shape[2]
    D = (dout * out).sum(-1).transpose(1, 2) - (torch.where(lse == -torch.inf, 0, dlse) if wants_lse else 0)
    dx = p * (torch.einsum("bihd,bjhd->bhij", dout, v.repeat_interleave(group, 2)) - D[..., None])
    ds = dx * (1 - tanh**2) * (options.get("scale") or 1 / math.sqrt(q.shape[-1]))
    of_group = lambda x: x.unflatten(2, (-1, group)).sum(3)  # noqa: E731
    gradients = {
        "q": torch.einsum("bhij,bjhd->bihd", rounded(ds), k.repeat_interleave(group, 2)),
        "k": of_group(torch.einsum("bhij,bihd->bjhd", rounded(ds), q)),
        "v": of_group(torch.einsum("bhij,bihd->bjhd", rounded(p), dout)),
    }
    gradients = {name: rounded(x[..., back[name]]) for name, x in gradients.items()}
    i, j = positions(q, k)
    if "bias" in tensors:
        gradients["bias"] = summed_to(dx, tensors["bias"].shape)
    if "sinks" in tensors:
        gradients["sinks"] = -(torch.exp(tensors["sinks"][:, None] - lse) * D).sum((0, 2))
    if "alibi_slopes" in tensors:
        of_sequence = -(dx * (i - j).abs()).sum((2, 3))
        gradients["alibi_slopes"] = of_sequence if tensors["alibi_slopes"].ndim == 2 else of_sequence.sum(0)
    return gradients


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32))


def gradients_of(function, tensors, dtype, wants_lse, options, given=torch.float32):
    """{tensor: its gradient}, computed in dtype, of a loss whose weights are numbers of type `given`."""
    leaves = {name: x.to(dtype).detach().requires_grad_() for name, x in tensors.items()}
    out, lse = function(**leaves, **options)
    loss = (out * drawn(*out.shape, seed=7).to(given).to(out.dtype)).sum()
    if wants_lse:
        lse = torch.where(lse == -torch.inf, 0, lse)
        loss = loss + (lse * drawn(*lse.shape, seed=8).to(given).to(lse.dtype)).sum()
    loss.backward()
    return {name: x.grad for name, x in leaves.items()}


def assert_close(got, tensors, wants_lse, options, dtype=torch.float32, results=None):
    """The contract's bound (1.10) of the gradients `got` of `tensors`, float32 numbers that `dtype` holds.

    results: (out, lse) of the backend, which the reference starts from then, as the backend's gradients do.
    """
    oracle = gradients_of(formula, tensors, torch.float64, wants_lse, options, dtype)
    draws = 12 if results is None else 3
    references = [contracts_gradients(tensors, wants_lse, options, draw, dtype, results) for draw in range(draws)]
    assert got.keys() == oracle.keys()
    for name, expected in oracle.items():
        error, *plain = (x[name].double() - expected for x in (got, *references))
        rounding = (expected.to(dtype).double() - expected).abs().max()
        assert error.abs().max() <= MAX_FACTOR * max(x.abs().max() for x in plain) + rounding, name
        if expected[..., 0].numel() >= 64:
            assert error.norm() <= NORM_FACTOR * max(x.norm() for x in plain), name


def assert_forward_close(results, tensors, options):
    """(out, lse) of the backend beside float64: near enough that what starts from them proves something."""
    exact, exact_lse = formula(**{name: x.double() for name, x in tensors.items()}, **options)
    out, lse = results
    plain = (formula(**tensors, **options)[0] - exact).norm() + (exact.to(out.dtype) - exact).norm()
    assert (out.double() - exact).norm() <= 2 * plain  # of 16-bit results half of it is for the rounding of P
    seen = exact_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, seen)
    assert ((lse - exact_lse)[seen].abs() <= LSE_TOLERANCE * (1 + exact_lse[seen].abs())).all()
