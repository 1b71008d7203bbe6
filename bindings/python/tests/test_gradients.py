"""Gradients on the CPU: in PyTorch, eager, compiled and through the compat layers; in NumPy; and what has none.

Each is held to PyTorch's own derivative of the formula in float64, by what the contract's formulas in float32 achieve
(1.10, 1.13).
"""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import foveal.torch  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402
from foveal.compat import torch as compat_torch  # noqa: E402
from torch.utils import checkpoint  # noqa: E402

MAX_FACTOR, NORM_FACTOR = 2, 1.2


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


def contracts_gradients(tensors, wants_lse, options, draw):
    """The contract's formulas in float32. draw: the channels in an order of their own, so that sums round otherwise."""
    order, back = {}, {}
    for name in "qkv":
        channels = tensors[name].shape[-1]
        generator = torch.Generator().manual_seed(draw)
        order[name] = torch.randperm(channels, generator=generator) if draw else torch.arange(channels)
        back[name] = order[name].argsort()
    given = {name: x[..., order[name]] if name in order else x for name, x in tensors.items()}
    q, k, v = (given[name] for name in "qkv")
    others = {name: x for name, x in given.items() if name not in "qkv" and name != "sinks"}
    out, lse = formula(**given, **options)
    dout, dlse = drawn(*out.shape, seed=7), drawn(*lse.shape, seed=8)
    dout = dout[..., order["v"]]
    x, tanh = scores(q, k, **others, **options)
    p = torch.where(x == -torch.inf, 0, torch.exp(x - torch.where(lse == -torch.inf, 0, lse)[..., None]))
    group = q.shape[2] // k.shape[2]
    D = (dout * out).sum(-1).transpose(1, 2) - (torch.where(lse == -torch.inf, 0, dlse) if wants_lse else 0)
    dx = p * (torch.einsum("bihd,bjhd->bhij", dout, v.repeat_interleave(group, 2)) - D[..., None])
    ds = dx * (1 - tanh**2) * (options.get("scale") or 1 / math.sqrt(q.shape[-1]))
    of_group = lambda x: x.unflatten(2, (-1, group)).sum(3)  # noqa: E731
    gradients = {
        "q": torch.einsum("bhij,bjhd->bihd", ds, k.repeat_interleave(group, 2)),
        "k": of_group(torch.einsum("bhij,bihd->bjhd", ds, q)),
        "v": of_group(torch.einsum("bhij,bihd->bjhd", p, dout)),
    }
    gradients = {name: x[..., back[name]] for name, x in gradients.items()}
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


def inputs(b=2, s_q=33, s_k=49, h_q=4, h_k=2, d=24):
    return {"q": drawn(b, s_q, h_q, d), "k": drawn(b, s_k, h_k, d, seed=1), "v": drawn(b, s_k, h_k, d, seed=2)}


def gradients_of(function, tensors, dtype, wants_lse, options):
    leaves = {name: x.to(dtype).detach().requires_grad_() for name, x in tensors.items()}
    out, lse = function(**leaves, **options)
    loss = (out * drawn(*out.shape, seed=7).to(dtype)).sum()
    if wants_lse:
        lse = torch.where(lse == -torch.inf, 0, lse)
        loss = loss + (lse * drawn(*lse.shape, seed=8).to(dtype)).sum()
    loss.backward()
    return {name: x.grad for name, x in leaves.items()}


def assert_close(got, tensors, wants_lse, options):
    oracle = gradients_of(formula, tensors, torch.float64, wants_lse, options)
    references = [contracts_gradients(tensors, wants_lse, options, draw) for draw in range(12)]
    assert got.keys() == oracle.keys()
    for name, expected in oracle.items():
        error, *plain = (x[name].double() - expected for x in (got, *references))
        rounding = (expected.float().double() - expected).abs().max()
        assert error.abs().max() <= MAX_FACTOR * max(x.abs().max() for x in plain) + rounding, name
        if expected[..., 0].numel() >= 64:
            assert error.norm() <= NORM_FACTOR * max(x.norm() for x in plain), name


def through_foveal(**arguments):
    return foveal.attention(**arguments, return_lse=True)


OPTIONS = {
    "plain": ({}, {}),
    "causal": ({}, {"causal": True}),
    "window": ({}, {"window": (9, 3)}),
    "chunk": ({}, {"chunk": 7}),
    "softcap and scale": ({}, {"softcap": 2.0, "scale": 0.5}),
    "sinks": ({"sinks": drawn(4, seed=3)}, {"causal": True}),
    "slopes": ({"alibi_slopes": drawn(4, seed=4).abs() / 8}, {}),
    "slopes of each sequence": ({"alibi_slopes": drawn(2, 4, seed=4).abs() / 8}, {}),
    "bias": ({"bias": drawn(2, 4, 33, 49, seed=5)}, {}),
    "shared bias": ({"bias": drawn(1, 4, 33, 49, seed=5)}, {"causal": True}),
    "bias of keys": ({"bias": drawn(2, 1, 1, 49, seed=5)}, {}),
    "mask": ({}, {"mask": drawn(2, 1, 33, 49, seed=6) > -0.5}),
    "all": (
        {"sinks": drawn(4, seed=3), "alibi_slopes": drawn(4, seed=4).abs() / 8, "bias": drawn(1, 1, 33, 49, seed=5)},
        {"softcap": 3.0, "causal": True, "mask": drawn(2, 1, 33, 49, seed=6) > -0.5},
    ),
}


@pytest.mark.parametrize("wants_lse", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name, wants_lse):
    given, options = OPTIONS[name]
    tensors = inputs() | given
    got = gradients_of(through_foveal, tensors, torch.float32, wants_lse, options)
    assert_close(got, tensors, wants_lse, options)


def test_only_what_is_asked_for():
    tensors = inputs() | {"sinks": drawn(4, seed=3)}
    everything = gradients_of(through_foveal, tensors, torch.float32, False, {})
    for names in itertools.combinations(tensors, 2):
        leaves = {name: x.clone().requires_grad_(name in names) for name, x in tensors.items()}
        out = foveal.attention(**leaves)
        (out * drawn(*out.shape, seed=7)).sum().backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is None) == (name not in names)
            assert leaf.grad is None or torch.equal(leaf.grad, everything[name])
    with torch.no_grad():
        assert not foveal.attention(**leaves).requires_grad


def test_varlen_is_each_sequence_alone():
    lengths_q, lengths_k = (5, 0, 33), (9, 4, 20)
    cu_q, cu_k = (torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in (lengths_q, lengths_k))
    q, k, v = (drawn(sum(n), h, 16, seed=i).requires_grad_() for i, (n, h) in
               enumerate(((lengths_q, 4), (lengths_k, 2), (lengths_k, 2))))  # fmt: skip
    out, lse = foveal.attention_varlen(q, k, v, cu_q, cu_k, causal=True, return_lse=True)
    dout, dlse = drawn(*out.shape, seed=7), drawn(*lse.shape, seed=8)
    finite = lse.detach() > -torch.inf
    ((out * dout).sum() + (torch.where(finite, lse, 0) * dlse).sum()).backward()
    for i in range(3):
        rows, keys = (slice(*cu[i : i + 2].tolist()) for cu in (cu_q, cu_k))
        own = [x.detach()[None, part].requires_grad_() for x, part in ((q, rows), (k, keys), (v, keys))]
        alone, own_lse = foveal.attention(*own, causal=True, return_lse=True)
        seen = torch.where(own_lse.detach() > -torch.inf, own_lse, 0)
        ((alone * dout[None, rows]).sum() + (seen * dlse[None, :, rows]).sum()).backward()
        for x, part, leaf in zip((q, k, v), (rows, keys, keys), own, strict=True):
            assert torch.equal(x.grad[None, part], leaf.grad)


def test_rows_outside_used_lengths_are_zero():
    tensors = {name: x.requires_grad_() for name, x in inputs().items()}
    used = {
        "seqused_q": torch.tensor([33, 5], dtype=torch.int32),
        "seqused_k": torch.tensor([20, 49], dtype=torch.int32),
    }
    foveal.attention(**tensors, **used).sum().backward()
    assert not tensors["q"].grad[1, 5:].any() and tensors["q"].grad[1, :5].any()
    assert not tensors["k"].grad[0, 20:].any() and not tensors["v"].grad[0, 20:].any()


def test_the_same_bits():
    tensors, options = inputs(s_q=300, s_k=300) | {"sinks": drawn(4, seed=3)}, {"causal": True}
    first, again = (gradients_of(through_foveal, tensors, torch.float32, True, options) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors = {name: x.to(dtype).float() for name, x in inputs().items()}
    got = gradients_of(lambda **x: tuple(y.float() for y in through_foveal(**x)), tensors, dtype, False, {})
    oracle = gradients_of(formula, tensors, torch.float64, False, {})
    eps = torch.finfo(dtype).eps
    for name, expected in oracle.items():
        assert got[name].dtype == dtype
        assert (got[name].double() - expected).norm() <= 2 * eps * expected.norm()


@pytest.mark.parametrize("name", ["attention", "attention_lse", "attention_varlen", "attention_varlen_lse"])
def test_opcheck(name):
    q, k, v = inputs(b=1).values()
    lengths = [torch.tensor([0, 9, n], dtype=torch.int32) for n in (33, 49)]
    args = [x[0] for x in (q, k, v)] + lengths if "varlen" in name else [q, k, v]
    args = [x.clone().requires_grad_() if x.is_floating_point() else x for x in args]
    torch.library.opcheck(getattr(torch.ops.foveal, name), tuple(args), {"causal": True, "sinks": drawn(4)})


def test_opcheck_of_the_gradient():
    q, k, v = inputs().values()
    out, lse = foveal.attention(q, k, v, return_lse=True)
    args = (torch.ones_like(out), None, q, k, v, out, lse, None, None, [True, True, False, True, False, False])
    torch.library.opcheck(torch.ops.foveal.attention_backward, args, {"sinks": drawn(4)})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    def layer(q, k, v, sinks):
        out, lse = foveal.torch.attention(q * 2, k, v, causal=True, sinks=sinks, return_lse=True)
        return (out * 3).sum() + lse.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for s in (40, 41, 56):
        results = []
        for function in (compiled, layer):
            given = inputs(s_q=s, s_k=s) | {"sinks": drawn(4, seed=3)}
            leaves = [x.clone().requires_grad_() for x in given.values()]
            function(*leaves).backward()
            results.append([x.grad for x in leaves])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)


def test_checkpoints_and_functional_transforms():
    q, k, v = inputs().values()
    plain = q.clone().requires_grad_()
    foveal.attention(plain, k, v).square().sum().backward()
    again = q.clone().requires_grad_()
    checkpoint.checkpoint(foveal.attention, again, k, v, use_reentrant=False).square().sum().backward()
    assert torch.equal(again.grad, plain.grad)
    of_q = torch.func.grad(lambda x: foveal.torch.attention(x, k, v).square().sum())(q)
    assert torch.equal(of_q, plain.grad)


def test_numpy_is_pytorch():
    given, options = OPTIONS["all"]
    options = dict(options, mask=options["mask"].numpy())
    arrays = {name: x.numpy() for name, x in (inputs() | given).items()}
    out, lse = foveal.attention(**arrays, **options, return_lse=True)
    dout, dlse = drawn(*out.shape, seed=7), drawn(*lse.shape, seed=8)
    others = {name: arrays[name] for name in given}
    main = [arrays[name] for name in "qkv"]
    got = foveal.attention_backward(dout.numpy(), *main, out, lse, dlse=dlse.numpy(), **others, **options)
    leaves = {name: torch.from_numpy(x).requires_grad_() for name, x in arrays.items()}
    options["mask"] = torch.from_numpy(options["mask"])
    results = foveal.attention(**leaves, **options, return_lse=True)
    torch.autograd.backward(results, (dout, dlse))
    for name, leaf in leaves.items():
        assert np.array_equal(getattr(got, f"d{name}"), leaf.grad.numpy()), name
    some = foveal.attention_backward(dout.numpy(), *main, out, lse, wanted=("k",), **others, **options | {"mask": None})
    assert some.dq is None and some.dsinks is None and some.dk is not None
    with pytest.raises(foveal.InvalidArgument, match="wanted has 'out'"):
        foveal.attention_backward(dout.numpy(), *main, out, lse, wanted=("out",))
    with pytest.raises(foveal.InvalidArgument, match="lse.shape"):
        foveal.attention_backward(dout.numpy(), *main, out, lse[:, :2])


def test_flash_attention():
    q, k, v = inputs().values()
    options = {"causal": True, "window_size": (9, 0), "softcap": 5.0, "return_attn_probs": True}
    got = gradients_of(flash_attn.flash_attn_func, inputs(), torch.float32, True, options)
    assert_close(got, inputs(), True, {"causal": True, "window": (9, None), "softcap": 5.0})
    kv = torch.stack([k, v], 2).requires_grad_()
    out, lse = flash_attn.flash_attn_kvpacked_func(q, kv, **options)
    ((out * drawn(*out.shape, seed=7)).sum() + (lse * drawn(*lse.shape, seed=8)).sum()).backward()
    assert torch.equal(kv.grad[:, :, 0], got["k"]) and torch.equal(kv.grad[:, :, 1], got["v"])


def test_sdpa():
    q, k, v = (x.transpose(1, 2) for x in inputs(h_k=4).values())
    bias = drawn(33, 49, seed=5)
    for options in ({}, {"is_causal": True}, {"attn_mask": bias}):
        results = []
        for function in (compat_torch.sdpa, torch.nn.functional.scaled_dot_product_attention):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            given = {name: x.clone().requires_grad_() if name == "attn_mask" else x for name, x in options.items()}
            function(*leaves, **given).square().sum().backward()
            results.append([x.grad for x in leaves] + [x.grad for x in given.values() if x is not True])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_what_has_no_gradient():
    q, k, v = inputs(b=1, s_k=48).values()
    pages = {
        "block_table": torch.arange(3, dtype=torch.int32)[None],
        "seqused_k": torch.tensor([48], dtype=torch.int32),
    }
    paged = [x[0].unflatten(0, (3, 16)) for x in (k, v)]
    with pytest.raises(foveal.UnsupportedError, match="block_table is present; there is no gradient of keys in pages"):
        foveal.attention(q.requires_grad_(), *paged, **pages)
    with torch.no_grad():
        foveal.attention(q, *paged, **pages)
    with pytest.raises(foveal.UnsupportedError, match="^out is given"):
        foveal.attention(q, k, v, out=torch.empty_like(q))
    (first,) = torch.autograd.grad(foveal.attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()
    out, lse = foveal.attention(q.detach(), k, v, return_lse=True)
    with pytest.raises(foveal.UnsupportedError, match="attention_backward has no derivative"):
        foveal.attention_backward(out, q, k, v, out, lse)


def test_training_a_transformer():
    transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")
    import foveal.compat.transformers

    foveal.compat.transformers.register()
    config = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip

    def losses(implementation):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM._from_config(
            transformers.LlamaConfig(**config), attn_implementation=implementation
        ).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.randint(0, 64, (4, 24), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, :5] = 0  # rows that see nothing: 0 here, the mean of V in eager
        labels = ids.masked_fill(mask == 0, -100)
        labels[1, 5] = -100  # what such a row predicts
        values = []
        for _ in range(8):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            values.append(loss.item())
        return values

    ours, eager = losses("foveal"), losses("eager")
    assert ours[-1] < ours[0] - 1
    assert ours == pytest.approx(eager, rel=1e-3)
    assert ours == losses("foveal")
