"""Gradients of plain eager calls of PyTorch go past its dispatcher, and nothing but host time tells the difference."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import foveal.torch  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402
from foveal.compat import torch as compat_torch  # noqa: E402
from gradient_oracle import drawn  # noqa: E402
from test_gradients import OPTIONS, inputs  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

EAGER, OPERATOR = "FovealAttentionBackward", "_RecordedBackward"


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def leaves(**others):
    return {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in (inputs() | others).items()}


def packed_leaves():
    lengths = [torch.tensor(x, dtype=torch.int32) for x in ([0, 4, 33], [0, 9, 49])]
    return [x[0].clone().requires_grad_() for x in inputs().values()] + lengths


def gradients(results, of, **options):
    results = results if isinstance(results, tuple) else (results,)
    weights = [drawn(*x.shape, seed=i) for i, x in enumerate(results)]
    return torch.autograd.grad(results, list(of), weights, **options)


def node_of(result):
    """The name of the node that computes foveal's gradient, behind views of its result."""
    node = result.grad_fn
    while node.name().startswith(("View", "Transpose", "Alias")):
        node = node.next_functions[0][0]
    return node.name()


def same(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("wants_lse", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_bits_of_the_operator(name, wants_lse):
    given, options = OPTIONS[name]
    of = leaves(**given)
    results = foveal.attention(**of, **options, return_lse=wants_lse)
    with Watch() as watch:
        expected = foveal.attention(**of, **options, return_lse=wants_lse)
    assert watch.seen[0] == "foveal.attention_lse.default"
    first, other = (x[0] if wants_lse else x for x in (results, expected))
    assert node_of(first) == EAGER and node_of(other) == OPERATOR
    assert same(gradients(results, of.values()), gradients(expected, of.values()))


def test_each_way_to_call():
    q, k, v = leaves().values()
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    varlen = packed_leaves()
    parameter = torch.nn.Parameter(q.detach().clone())
    results = [
        foveal.attention(q, k, v, causal=True),
        foveal.attention(parameter, k.detach(), v.detach()),
        foveal.torch.attention(q, k, v),
        foveal.attention_varlen(*varlen, causal=True),
        foveal.torch.attention_varlen(*varlen),
        flash_attn.flash_attn_func(q, k, v, causal=True),
        flash_attn.flash_attn_varlen_func(*varlen, 29, 40),
        compat_torch.sdpa(*heads_first, is_causal=True, enable_gqa=True),
    ]
    assert [node_of(x) for x in results] == [EAGER] * len(results)
    with Watch() as watch:
        expected = foveal.attention_varlen(*varlen, causal=True)
    assert watch.seen[0] == "foveal.attention_varlen_lse.default"
    assert same(gradients(results[3], varlen[:3]), gradients(expected, varlen[:3]))


class Subclass(torch.Tensor):
    """Its memory and its functions are torch.Tensor's."""


def test_what_pytorch_watches_goes_to_the_operators():
    q, k, v = leaves().values()
    of_subclass = foveal.attention(q.detach().as_subclass(Subclass).requires_grad_(), k, v)
    assert type(of_subclass) is Subclass and node_of(of_subclass) == OPERATOR
    seen = []

    def captured(x):  # q is no tensor of the transform's level
        result = foveal.attention(q, k, v)
        seen.append(OPERATOR in str(result))
        return (result.detach() * x).sum()

    torch.func.grad(captured)(torch.ones(()))
    assert seen == [True]
    graph = make_fx(lambda q: torch.autograd.grad(foveal.attention(q, k, v).sum(), q))(q)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert {"foveal.attention_lse.default", "foveal.attention_backward.default"} <= set(targets)
    compiled = torch.compile(lambda *x: foveal.attention(*x).square().sum(), backend="aot_eager", fullgraph=True)
    compiled(q, k, v).backward()
    assert same([x.grad for x in (q, k, v)], torch.autograd.grad(foveal.attention(q, k, v).square().sum(), (q, k, v)))


def test_a_mode_around_the_backward_pass_sees_the_operator():
    q, k, v = leaves().values()
    out = foveal.attention(q, k, v)
    expected = gradients(out, (q, k, v), retain_graph=True)
    with Watch() as watch:
        actual = gradients(out, (q, k, v))
    assert "foveal.attention_backward.default" in watch.seen and same(actual, expected)


SAVED = {"sinks": drawn(4, seed=3), "bias": drawn(1, 4, 33, 49, seed=5), "mask": drawn(2, 1, 33, 49, seed=6) > -0.5}
USED = {name: torch.tensor(x, dtype=torch.int32) for name, x in (("seqused_q", [33, 5]), ("seqused_k", [20, 49]))}


@pytest.mark.parametrize("name", [*"qkv", "sinks", "bias", "mask", "seqused_q", "seqused_k", "dropout_state", "out"])
def test_what_was_saved_is_not_to_be_changed(name):
    of = leaves(**SAVED) | {n: x.clone() for n, x in USED.items()} | {"dropout_state": torch.tensor([3, 4])}
    out = foveal.attention(**of, dropout_p=0.1)
    with torch.no_grad():
        (out if name == "out" else of[name]).zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_hooks_see_what_is_saved():
    of = leaves(**SAVED)
    differentiable = [x for x in of.values() if x.requires_grad]
    expected = gradients(foveal.attention(**of), differentiable)
    packed, unpacked = [], []

    def pack(x):
        packed.append(x.shape)
        return x.detach().double() if x.is_floating_point() else x.clone()

    def unpack(x):
        unpacked.append(x.shape)
        return x.float() if x.is_floating_point() else x

    with saved_tensors_hooks(pack, unpack):
        out = foveal.attention(**of)
    assert len(packed) == len(of) + 2 and not unpacked  # and out and lse
    assert same(gradients(out, differentiable), expected) and sorted(unpacked) == sorted(packed)
    seen = []
    out = foveal.attention(**of)
    out.register_hook(lambda gradient: seen.append("out"))
    out.grad_fn.register_hook(lambda inputs, outputs: seen.append("node"))
    of["q"].register_hook(lambda gradient: seen.append("q") or gradient * 2)
    actual = gradients(out, differentiable)
    assert seen == ["out", "node", "q"] and torch.equal(actual[0], expected[0] * 2)


def test_again_and_again():
    q, k, v = leaves().values()
    results = foveal.attention(q, k, v, dropout_p=0.3, return_lse=True)
    first, second = (gradients(results, (q, k, v), retain_graph=True) for _ in range(2))
    assert same(first, second)
    gradients(results, (q, k, v))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(results, (q, k, v))


def test_any_gradient_that_pytorch_may_hand_over():
    q, k, v = leaves().values()
    out, lse = foveal.attention(q, k, v, return_lse=True)

    def given(dout, dlse):
        of = [x for x, d in ((out, dout), (lse, dlse)) if d is not None]
        return torch.autograd.grad(of, (q, k, v), [d for d in (dout, dlse) if d is not None], retain_graph=True)

    dout, dlse = drawn(*out.shape, seed=7), drawn(*lse.shape, seed=8)
    ones, zeros = torch.ones_like(out), torch.zeros_like(out)
    assert same(given(torch.ones(()).expand(out.shape), None), given(ones, None))
    assert same(given(torch._neg_view(dout), torch._neg_view(dlse)), given(-dout, -dlse))
    assert same(given(dout.transpose(1, 3).contiguous().transpose(1, 3), None), given(dout, None))
    assert same(given(None, dlse.transpose(1, 2).contiguous().transpose(1, 2)), given(zeros, dlse))
    assert same(given(torch._efficientzerotensor(out.shape), dlse), given(zeros, dlse))
    assert same(given(dout.as_subclass(Subclass), None), given(dout, None))


def test_a_negated_gradient_is_refused_by_name():
    q, k, v = inputs().values()
    out, lse = foveal.attention(q, k, v, return_lse=True)
    given = {"dout": out, "q": q, "k": k, "v": v, "out": out, "lse": lse, "dlse": lse}
    for name in ("dout", "dlse", "out", "lse"):
        with pytest.raises(foveal.UnsupportedError, match=f"^{name} is a lazily negated view"):
            foveal.attention_backward(**given | {name: torch._neg_view(given[name])})


def test_options_are_those_of_the_call():
    q, k, v = leaves().values()
    window, state, scale = [9, 3], [5, 6], torch.tensor(0.5)
    out = foveal.attention(q, k, v, window=window, scale=scale, dropout_p=0.2, dropout_state=state)
    window[:], state[:] = [1, 1], [7, 8]
    scale.fill_(2.0)
    expected = foveal.attention(q, k, v, window=(9, 3), scale=0.5, dropout_p=0.2, dropout_state=(5, 6))
    assert torch.equal(out, expected) and same(gradients(out, (q, k, v)), gradients(expected, (q, k, v)))


def test_a_call_that_is_forgotten_frees_its_memory():
    q, k, v = leaves().values()
    gc.disable()
    try:
        out, lse = foveal.attention(q, k, v, return_lse=True)
        kept = [weakref.ref(x) for x in (out, lse, out.grad_fn)]
        out.sum().backward()
        del out, lse
        assert not any(x() is not None for x in kept)
    finally:
        gc.enable()


def test_other_libraries_tensors_are_refused_where_a_gradient_is_recorded():
    q, k, v = leaves().values()
    mask = (drawn(2, 1, 33, 49, seed=6) > 0).numpy()
    with pytest.raises(TypeError, match="^mask is of type ndarray"):
        foveal.attention(q, k, v, mask=mask)


@pytest.mark.parametrize("name", [*OPTIONS, "dropout", "varlen", "lse"])
def test_compiled_autograd_traces_the_operator(name):
    given, options = OPTIONS.get(name, ({}, {"causal": True}))
    of = leaves(**given)
    if name == "dropout":
        options = {"dropout_p": 0.3, "dropout_state": (1, 2)}
    if name == "varlen":
        of = dict(zip(("q", "k", "v"), packed_leaves()[:3], strict=True))
        arguments = [*of.values(), *packed_leaves()[3:]]
        results = [foveal.attention_varlen(*arguments, **options) for _ in range(2)]
    else:
        results = [foveal.attention(**of, **options, return_lse=name == "lse") for _ in range(2)]
    expected = gradients(results[0], of.values())
    results = results[1] if name == "lse" else results[1:]
    assert node_of(results[0]) == EAGER
    weights = [drawn(*x.shape, seed=i) for i, x in enumerate(results)]
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        torch.autograd.backward(results, weights)
    assert same([x.grad for x in of.values()], expected)
