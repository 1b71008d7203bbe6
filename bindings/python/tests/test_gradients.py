"""Gradients on the CPU: in PyTorch, eager, compiled and through the compat layers; in NumPy; and what has none.

Each is held to PyTorch's own derivative of the formula in float64, by what the contract's formulas in float32 achieve
(1.10, 1.13).
"""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import foveal.torch  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402
from foveal.compat import torch as compat_torch  # noqa: E402
from gradient_oracle import assert_close, drawn, formula, gradients_of  # noqa: E402
from torch.utils import checkpoint  # noqa: E402


def inputs(b=2, s_q=33, s_k=49, h_q=4, h_k=2, d=24):
    return {"q": drawn(b, s_q, h_q, d), "k": drawn(b, s_k, h_k, d, seed=1), "v": drawn(b, s_k, h_k, d, seed=2)}


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


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in OPTIONS if "slopes" in name or "bias" in name or name == "all"])
def test_slopes_and_bias_on_the_gpu(name):
    given, options = OPTIONS[name]
    tensors = {n: x.bfloat16().float() for n, x in (inputs(d=32) | given).items()}
    results = []

    def on_gpu(**arguments):
        arguments = {n: x.cuda() if torch.is_tensor(x) else x for n, x in arguments.items()}
        arguments |= {n: arguments[n].bfloat16() for n in "qkv"}
        results[:] = (x.cpu() for x in foveal.attention(**arguments, return_lse=True))
        return results

    got = gradients_of(on_gpu, tensors, torch.float32, True, options, torch.bfloat16)
    assert_close(got, tensors, True, options, torch.bfloat16, [x.detach() for x in results])


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
