"""Tensors of PyTorch that are no plain ones, and calls that PyTorch watches: an eager call reads memory past the
dispatcher, so each of these goes to the registered operator, or is refused by name."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import foveal.torch  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


def dense():
    torch.manual_seed(0)
    return [torch.randn(2, 6, 4, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 16)]


def packed():
    lengths = [torch.tensor(x, dtype=torch.int32) for x in ([0, 4, 12], [0, 9, 18])]
    return [x.flatten(0, 1) for x in dense()] + lengths


def parts():
    q, k, v = dense()
    results = [foveal.attention(q, k[:, a:b], v[:, a:b], return_lse=True) for a, b in ((0, 4), (4, 9))]
    return [out for out, _ in results] + [lse for _, lse in results]


def merge(out_0, out_1, lse_0, lse_1, **results):
    return foveal.merge([out_0, out_1], [lse_0, lse_1], **results)


def varlen(q, k, v, cu_q, cu_k, **options):
    return foveal.attention_varlen(q, k, v, cu_q, cu_k, **options)


def flash_varlen(q, k, v, cu_q, cu_k):
    return flash_attn.flash_attn_varlen_func(q, k, v, cu_q, cu_k, 6, 9, causal=True)


# function, its tensors, and the operator that it is where PyTorch watches
CALLS = {
    "attention": (lambda *x: foveal.attention(*x, causal=True, window=(3, None)), dense, "attention"),
    "attention with lse": (lambda *x: foveal.attention(*x, return_lse=True), dense, "attention_lse"),
    "varlen": (lambda *x: varlen(*x, softcap=2.0), packed, "attention_varlen"),
    "varlen with lse": (lambda *x: varlen(*x, return_lse=True), packed, "attention_varlen_lse"),
    "merge": (lambda *x: merge(*x), parts, "merge"),
    "foveal.torch.attention": (lambda *x: foveal.torch.attention(*x, scale=0.3), dense, "attention"),
    "foveal.torch.varlen": (lambda *x: foveal.torch.attention_varlen(*x, causal=True), packed, "attention_varlen"),
    "foveal.torch.merge": (lambda a, b, c, d: foveal.torch.merge([a, b], [c, d]), parts, "merge"),
    "flash_attn_func": (lambda *x: flash_attn.flash_attn_func(*x, causal=True), dense, "attention"),
    "flash_attn_varlen_func": (flash_varlen, packed, "attention_varlen"),
}
each_call = pytest.mark.parametrize("name", CALLS)


def equal(actual, expected):
    if isinstance(expected, torch.Tensor):
        return torch.equal(actual, expected)
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def other_values(tensors):
    return [x + 0.5 if x.is_floating_point() else x for x in tensors]


@each_call
def test_jit_trace(name):
    function, tensors, operator = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(function, tensors())
    assert f"foveal::{operator}(" in str(traced.inlined_graph)
    assert equal(traced(*other_values(tensors())), function(*other_values(tensors())))


@each_call
def test_make_fx(name):
    function, tensors, operator = CALLS[name]
    graph = make_fx(function)(*tensors())
    assert f"foveal.{operator}.default" in [str(node.target) for node in graph.graph.nodes]
    assert equal(graph(*other_values(tensors())), function(*other_values(tensors())))


@each_call
def test_export(name):
    function, tensors, operator = CALLS[name]

    class Module(torch.nn.Module):
        def forward(self, *x):
            return function(*x)

    exported = torch.export.export(Module(), tuple(tensors()), strict=False)
    assert f"foveal.{operator}.default" in str(exported.graph)
    assert equal(exported.module()(*other_values(tensors())), function(*other_values(tensors())))


@each_call
def test_dispatch_modes_see_the_operator(name):
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    function, tensors, operator = CALLS[name]
    given, seen = tensors(), []
    expected = function(*given)
    with Mode():
        actual = function(*given)
    assert equal(actual, expected)
    assert seen == [f"foveal.{operator}.default"]


@each_call
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_tensors_without_memory(name, kind):
    function, tensors, _ = CALLS[name]
    given = tensors()
    mode = FakeTensorMode()
    bare = [mode.from_tensor(x) if kind == "fake" else x.to("meta") for x in given]
    results, expected = function(*bare), function(*given)
    if isinstance(expected, torch.Tensor):
        results, expected = [results], [expected]
    for result, like in zip(results, expected, strict=True):
        assert result.shape == like.shape and result.dtype == like.dtype and result.stride() == like.stride()
        assert result.device.type == ("cpu" if kind == "fake" else "meta") and type(result) is type(bare[0])


def test_descriptions_of_tensors_without_memory():
    q, k, v = dense()
    mode = FakeTensorMode()
    for tensors in ([x.to("meta") for x in (q, k, v)], [mode.from_tensor(x) for x in (q, k, v)]):
        assert foveal.supports(*tensors, causal=True, backend="cpu")
        assert str(foveal.plan(*tensors, backend="cpu")) == str(foveal.plan(q, k, v))
        with pytest.raises(foveal.InvalidArgument, match="k.shape"):
            foveal.supports(tensors[0], tensors[1][:1], tensors[2])
        with pytest.raises(foveal.InvalidArgument, match="q.stride"):
            foveal.supports(tensors[0][..., ::2], k[..., ::2], v)


def test_vmap():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 6, 4, 16), torch.randn(2, 3, 9, 2, 16), torch.randn(2, 9, 2, 16)
    expected = torch.stack([foveal.attention(q[i], k[:, i], v, causal=True) for i in range(3)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each sample alone
        actual = torch.func.vmap(lambda q, k: foveal.attention(q, k, v, causal=True), in_dims=(0, 1))(q, k)
    assert torch.equal(actual, expected)


@each_call
def test_derivatives(name):
    function, tensors, _ = CALLS[name]
    for i, tensor in enumerate(tensors()):
        if not tensor.is_floating_point():
            continue
        given = tensors()
        argument = ("q", "k", "v")[i] if len(given) != 4 else f"{('outs', 'lses')[i // 2]}\\[{i % 2}\\]"
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, torch.ones_like(x)) if x is given[i] else x for x in given]
            with pytest.raises(foveal.UnsupportedError, match=f"^{argument} has a tangent"):
                function(*duals)
            function(*given)

        def of_one(x, given=given, i=i):
            return function(*given[:i], x, *given[i + 1 :])

        with pytest.raises(foveal.UnsupportedError, match="has a tangent"):
            torch.func.jvp(of_one, (given[i],), (torch.ones_like(given[i]),))
        if name.endswith("merge"):
            with pytest.raises(foveal.UnsupportedError, match="requires a gradient"):
                torch.func.vjp(of_one, given[i])
            given[i].requires_grad_()
            with pytest.raises(foveal.UnsupportedError, match=f"^{argument} requires a gradient"):
                function(*given)
            continue
        results, gradient_of = torch.func.vjp(of_one, given[i])
        (by_transform,) = gradient_of(results)
        results = function(*given[:i], given[i].requires_grad_(), *given[i + 1 :])
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.backward(results, tuple(x.detach() for x in results))
        assert torch.equal(given[i].grad, by_transform)


WRITES = {
    "attention": (foveal.attention, dense, ["out"]),
    "varlen": (varlen, packed, ["out"]),
    "merge": (merge, parts, ["out", "lse"]),
}


def results_of(function, tensors):
    results = function(*tensors)
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("name", WRITES)
def test_writing_tells_autograd(name):
    function, tensors, names = WRITES[name]
    given = tensors()
    results = [torch.ones_like(x) for x in results_of(function, given)]
    weights = [torch.ones_like(x, requires_grad=True) for x in results]
    losses = [(weight * saved).sum() for weight, saved in zip(weights, results, strict=True)]
    versions = [x._version for x in results]
    function(*given, **dict(zip(names, results, strict=True)))
    assert all(x._version > before for x, before in zip(results, versions, strict=True))
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", WRITES)
def test_results_that_cannot_be_written_to(name):
    function, tensors, names = WRITES[name]
    given = tensors()
    expected = results_of(function, given)
    for i, argument in enumerate(names):

        def call(result, i=i):
            results = [torch.empty_like(x) for x in expected]
            results[i] = result
            return function(*given, **dict(zip(names, results, strict=True)))

        leaf = torch.zeros_like(expected[i], requires_grad=True)
        with pytest.raises(foveal.UnsupportedError, match=f"^{argument} requires a gradient"):
            call(leaf)
        with torch.no_grad():
            call(leaf)
        assert torch.equal(leaf, expected[i])
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.zeros_like(expected[i]), torch.ones_like(expected[i]))
            with pytest.raises(foveal.UnsupportedError, match=f"^{argument} has a tangent"):
                call(dual)
        with torch.inference_mode():
            inference = torch.zeros_like(expected[i])
            call(inference)
        with pytest.raises(foveal.InvalidArgument, match=f"^{argument} is a tensor of torch.inference_mode"):
            call(inference)
        with pytest.raises(foveal.UnsupportedError, match=f"^{argument} is a lazily negated view"):
            call(torch._neg_view(torch.zeros_like(expected[i])))
        with pytest.raises(foveal.UnsupportedError, match=f"^{names[0]} is given"):
            make_fx(lambda result: call(result))(torch.zeros_like(expected[i]))  # noqa: B023


def refusals():
    q, k, v = dense()
    complex_ = torch.randn(2, 9, 2, 16, dtype=torch.complex64)
    yield "lazily negated", torch._neg_view(v)
    yield "lazily negated", torch.randn(2, 9, 2, 1, dtype=torch.complex64).conj().imag
    yield "dtype is complex64", complex_
    yield "dtype is complex64", complex_.conj()
    yield "of layout torch.sparse_coo", v.to_sparse()
    yield "nested", torch.nested.nested_tensor([v[0], v[1]])
    yield "nested", torch.nested.nested_tensor([v[0], v[1]], layout=torch.jagged)
    yield "quantized", torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)
    yield "dtype is float8_e5m2", v.to(torch.float8_e5m2)
    yield "dtype is float64", v.double()


@pytest.mark.parametrize("i", range(10))
def test_what_no_operator_could_take_is_refused_by_name(i):
    reason, bad = list(refusals())[i]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (function, tensors, _) in CALLS.items():
            given = tensors()
            for place, argument in enumerate(["outs[0]", "outs[1]"] if "merge" in name else ["q", "k", "v"]):
                with pytest.raises(foveal.Error, match=reason) as raised:
                    function(*given[:place], bad, *given[place + 1 :])
                assert str(raised.value).startswith(argument)
        q, k, v = dense()
        for argument in ("sinks", "alibi_slopes", "bias", "mask", "seqused_k"):
            with pytest.raises(foveal.Error, match=reason) as raised:
                foveal.attention(q, k, v, **{argument: bad})
            assert str(raised.value).startswith(argument)
            with pytest.raises(foveal.Error, match=reason):
                foveal.supports(q, k, v, **{argument: bad})


class Watching(torch.Tensor):
    """Its functions are its own."""

    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapping(torch.Tensor):
    """Its memory is another tensor's."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(x):
            return x.inner if isinstance(x, Wrapping) else [unwrap(y) for y in x] if isinstance(x, list) else x

        result = func(*map(unwrap, args), **{name: unwrap(x) for name, x in (kwargs or {}).items()})
        return tuple(map(Wrapping, result)) if isinstance(result, tuple) else Wrapping(result)


@each_call
def test_subclasses_with_functions_of_their_own(name):
    function, tensors, operator = CALLS[name]
    given = tensors()
    expected = function(*given)
    Watching.seen.clear()
    function(*(x.as_subclass(Watching) for x in given))
    assert any(f"foveal.{operator}" in seen for seen in Watching.seen)
    results = function(*(Wrapping(x) for x in given))
    inner = [x.inner for x in results] if isinstance(results, tuple) else results.inner
    assert equal(inner, expected)


def test_distributed_tensors_are_refused_by_name():
    if not torch.distributed.is_available():
        pytest.skip("SKIPPED: this PyTorch has no torch.distributed")
    from torch.distributed.tensor import DTensor, init_device_mesh

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        q, k, v = (DTensor.from_local(x, mesh) for x in dense())
        with pytest.raises(foveal.UnsupportedError, match="q a DTensor"):
            foveal.attention(q, k, v)
        local = foveal.attention(q.to_local(), k.to_local(), v.to_local())
        assert torch.equal(local, foveal.attention(*dense()))
    finally:
        torch.distributed.destroy_process_group()


def test_many_kinds_of_tensors():
    numpy = pytest.importorskip("numpy", reason="SKIPPED: no NumPy")
    kinds = iter([type(f"Kind{n}", (torch.Tensor,), {}) for n in range(40)])

    def zeros(*shape):
        return torch.zeros(shape).as_subclass(next(kinds))

    outs = [numpy.zeros((1, 5, 2, 8), numpy.float32)] + [zeros(1, 5, 2, 8) for _ in range(19)]
    lses = [numpy.zeros((1, 2, 5), numpy.float32)] + [zeros(1, 2, 5) for _ in range(19)]
    merged, lse = foveal.merge(outs, lses)
    assert type(merged) is numpy.ndarray and type(lse) is numpy.ndarray
    first = outs[1]
    assert type(foveal.merge(outs[1:], lses[1:])[0]) is type(first)


def test_a_library_that_is_not_pytorch_in_a_trace():
    numpy = pytest.importorskip("numpy", reason="SKIPPED: no NumPy")
    q, k, v = dense()
    with pytest.raises(TypeError, match="^k is of type ndarray"):
        make_fx(lambda q: foveal.attention(q, numpy.zeros((2, 9, 2, 16), numpy.float32), v))(q)
    with pytest.raises(foveal.UnsupportedError, match="^k .*FakeTensor.* has no memory"):
        foveal.attention(q.numpy(), FakeTensorMode().from_tensor(k), v)


def test_what_passed_once_is_looked_at_again():
    """foveal keeps in mind what plain tensors look like: no others, and no other state of the thread, pass for them."""
    q, k, v = dense()
    out = torch.empty_like(q)
    expected = foveal.attention(q, k, v)
    for _ in range(3):
        assert foveal.attention(q, k, v, out=out) is out and torch.equal(out, expected)
        assert torch.equal(foveal.attention(q.transpose(0, 1).contiguous().transpose(0, 1), k, v), expected)
        for i, name in enumerate(["q", "k", "v", "out"]):
            given = [q, k, v, out]
            given[i] = torch._neg_view(given[i])
            with pytest.raises(foveal.UnsupportedError, match=f"^{name} is a lazily negated"):
                foveal.attention(*given[:3], out=given[3])
            given[i] = torch.zeros_like(given[i], requires_grad=True)
            with torch.no_grad():
                foveal.attention(*given[:3], out=given[3])
            refused = "out requires a gradient" if name == "out" else "out is given"
            with pytest.raises(foveal.UnsupportedError, match=f"^{refused}"):
                foveal.attention(*given[:3], out=given[3])
            given[i] = [q, k, v, out][i]
            with forward_ad.dual_level():
                given[i] = forward_ad.make_dual(given[i], torch.ones_like(given[i]))
                with pytest.raises(foveal.UnsupportedError, match=f"^{name} has a tangent"):
                    foveal.attention(*given[:3], out=given[3])
        with torch.inference_mode():
            assert torch.equal(foveal.attention(q, k, v), expected)
            foveal.attention(q, k, v, out=torch.empty_like(q))
        with torch.autocast("cpu"):
            assert torch.equal(foveal.attention(q, k, v), expected)
        graph = make_fx(lambda x: foveal.attention(x, k, v))(q)
        assert "foveal.attention.default" in str(graph.graph)
        before = out._version
        foveal.attention(q, k, v, out=out)
        assert out._version > before
