"""Plain calls of PyTorch, again and again: one look at all of their tensors has to see what many looks did before."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
from test_torch_eager import WRITES, equal, results_of  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_forgotten_after_many_plain_calls(name):
    function, tensors, names = WRITES[name]
    given = tensors()
    results = [torch.empty_like(x) for x in results_of(function, given)]
    written = dict(zip(names, results, strict=True))
    first = "outs\\[0\\]" if name == "merge" else "q"
    for _ in range(20):
        version = results[0]._version
        function(*given, **written)
        function(*given)
        assert results[0]._version > version
    with torch.no_grad():
        function(*given, **written)
    refused = f"{first} requires a gradient" if name == "merge" else "out is given"
    with pytest.raises(foveal.UnsupportedError, match=f"^{refused}"):
        function(given[0].clone().requires_grad_(), *given[1:], **written)
    with pytest.raises(foveal.UnsupportedError, match=f"^{first} is a lazily negated view"):
        function(torch._neg_view(given[0]), *given[1:], **written)
    with pytest.raises(foveal.UnsupportedError, match=f"^{names[-1]} is a lazily negated view"):
        function(*given, **{**written, names[-1]: torch._neg_view(results[-1])})
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(given[0], torch.ones_like(given[0]))
        with pytest.raises(foveal.UnsupportedError, match=f"^{first} has a tangent"):
            function(dual, *given[1:], **written)
    assert "foveal" in str(make_fx(lambda *x: function(*x))(*given).graph)
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        function(*given)
    assert any(operator.startswith("foveal.") for operator in seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        assert "foveal::" in str(torch.jit.trace(lambda *x: function(*x), given).inlined_graph)
    same = given[0].clone()
    if name == "attention":  # one tensor in several places
        x = given[0]
        assert equal(function(x, x, x, out=results[0]), function(x.clone(), x.clone(), x.clone()))
    elif name == "merge":
        expected = function(*given)[0]
        assert equal(function(same, *given[1:], out=same)[0], expected)


def test_later_steps_read_no_signature(monkeypatch):
    leaves = [torch.randn(1, 8, 2, 64).requires_grad_() for _ in range(3)]
    foveal.attention(*leaves).sum().backward()
    monkeypatch.setattr("inspect.signature", None)  # a millisecond each: more than a layer's work on a GPU
    foveal.attention(*leaves).sum().backward()
