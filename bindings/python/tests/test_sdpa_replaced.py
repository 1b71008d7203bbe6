"""foveal.compat.torch in place of torch.nn.functional.scaled_dot_product_attention: for how long, for whom, and what
becomes of calls that foveal cannot do.
"""

import random
import threading
import warnings

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from foveal.compat import torch as compat  # noqa: E402
from test_sdpa import PYTORCHS, K, Q, V, heads_first, normal  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_in_place():
    compat.clear_fallbacks()
    yield
    assert F.scaled_dot_product_attention is PYTORCHS


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """The operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def unsupported(*tensors):
    """A call that foveal cannot do and PyTorch can."""
    return F.scaled_dot_product_attention(*(x.double() for x in tensors))


def operators(function, *args, **options):
    with Seen() as seen_here:
        function(*args, **options)
    return seen_here.names


def is_foveals(*tensors, **options):
    return "foveal.attention.default" in operators(F.scaled_dot_product_attention, *tensors, **options)


def test_in_place():
    tensors = heads_first(Q, K, V)
    assert not is_foveals(*tensors)
    with compat.sdpa_replaced():
        assert is_foveals(*tensors, is_causal=True)
        layer = torch.nn.MultiheadAttention(16, 2, batch_first=True).train()
        with torch.no_grad():
            names = operators(layer, normal(2, 5, 16), normal(2, 7, 16), normal(2, 7, 16), need_weights=False)
        assert "foveal.attention.default" in names
    assert not is_foveals(*tensors) and compat.fallbacks() == {}


def test_falling_back_is_told():
    q, k, v = heads_first(Q, K, V)
    with compat.sdpa_replaced():
        with pytest.warns(compat.FallbackWarning, match="PyTorch's own, not foveal's: query.dtype is torch.float64"):
            unsupported(q, k, v)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the second time it is only counted
            unsupported(q, k, v)
        with pytest.warns(compat.FallbackWarning, match="v.stride"):
            out = F.scaled_dot_product_attention(q, k, v.mT.contiguous().mT)
        torch.testing.assert_close(out, PYTORCHS(q, k, v))
    reasons = compat.fallbacks()
    assert list(reasons.values()) == [2, 1] and next(iter(reasons)).startswith("query.dtype is torch.float64")
    compat.clear_fallbacks()
    assert compat.fallbacks() == {}


def test_what_pytorch_refuses_keeps_its_own_words():
    with compat.sdpa_replaced(), pytest.warns(compat.FallbackWarning):  # noqa: SIM117
        with pytest.raises(RuntimeError, match="at least 2 dimensional"):
            F.scaled_dot_product_attention(normal(16), normal(7, 16), normal(7, 16))


def test_strict():
    q, k, v = heads_first(Q, K, V)
    with compat.sdpa_replaced(strict=True):
        with pytest.raises(foveal.UnsupportedError, match="query.dtype is torch.float64"):
            unsupported(q, k, v)
        assert is_foveals(q, k, v)
    assert compat.fallbacks() == {}


def test_nested_and_left_by_an_exception():
    q, k, v = heads_first(Q, K, V)
    with pytest.raises(ZeroDivisionError), compat.sdpa_replaced(), compat.sdpa_replaced(strict=True):
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is PYTORCHS
    with compat.sdpa_replaced(strict=True):
        with compat.sdpa_replaced(), pytest.warns(compat.FallbackWarning):
            unsupported(q, k, v)
        with pytest.raises(foveal.UnsupportedError):  # the outer one counts again
            unsupported(q, k, v)


def test_left_in_another_order():  # as threads do
    q, k, v = heads_first(Q, K, V)
    strict, lenient = compat.sdpa_replaced(strict=True), compat.sdpa_replaced()
    lenient.__enter__()
    strict.__enter__()
    lenient.__exit__(None, None, None)
    try:
        with pytest.raises(foveal.UnsupportedError):
            unsupported(q, k, v)
    finally:
        strict.__exit__(None, None, None)


def test_install_and_uninstall():
    tensors = heads_first(Q, K, V)
    compat.install()
    compat.install(strict=True)
    with compat.sdpa_replaced():
        compat.uninstall()
        assert is_foveals(*tensors)
    assert is_foveals(*tensors)
    compat.uninstall()
    assert not is_foveals(*tensors)
    with pytest.raises(RuntimeError, match="without install"):
        compat.uninstall()


def test_somebody_elses_function_over_it():
    tensors = heads_first(Q, K, V)
    with compat.sdpa_replaced():
        inner = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = lambda *args, **options: inner(*args, **options)
        theirs = F.scaled_dot_product_attention
        assert is_foveals(*tensors)
    try:
        assert F.scaled_dot_product_attention is theirs and not is_foveals(*tensors)
        with compat.sdpa_replaced():
            assert is_foveals(*tensors)
            with pytest.warns(compat.FallbackWarning):
                unsupported(*tensors)
        assert F.scaled_dot_product_attention is theirs
    finally:
        F.scaled_dot_product_attention = PYTORCHS


def test_threads():
    tensors, failures = heads_first(Q, K, V), []
    expected = PYTORCHS(*tensors)

    def work(seed):
        choose = random.Random(seed)
        try:
            for _ in range(50):
                with compat.sdpa_replaced(strict=choose.random() < 0.5):
                    assert F.scaled_dot_product_attention is not PYTORCHS
                    torch.testing.assert_close(F.scaled_dot_product_attention(*tensors), expected)
                torch.testing.assert_close(F.scaled_dot_product_attention(*tensors), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_in_place_under_compile():
    torch._dynamo.reset()
    q, k, v = heads_first(Q, K, V)
    compiled = torch.compile(
        lambda *x, **options: F.scaled_dot_product_attention(*x, **options), fullgraph=True, backend="aot_eager"
    )
    assert not any("foveal" in name for name in operators(compiled, q, k, v))
    with compat.sdpa_replaced():
        assert torch.equal(compiled(q, k, v, is_causal=True), compat.sdpa(q, k, v, is_causal=True))
        leaf = q.clone().requires_grad_()
        compiled(leaf, k, v).sum().backward()
        assert leaf.grad is not None
    assert torch.equal(compiled(q, k, v), PYTORCHS(q, k, v))
