"""foveal.compat.torch.sdpa: the meaning of torch.nn.functional.scaled_dot_product_attention.

The oracle is PyTorch's own function in float64, the tolerance the contract's (1.10).
"""

import copy
import inspect

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import oracle  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from foveal.compat import torch as compat  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PYTORCHS = F.scaled_dot_product_attention


def normal(*shape):
    return torch.randn(*shape)


def heads_first(*shapes):
    return [normal(*shape) for shape in shapes]


def heads_second(*shapes):  # [b, h, s, d] in the memory of [b, s, h, d]
    return [normal(b, s, h, d).transpose(1, 2) for b, h, s, d in shapes]


def square(b=2, h=4, s_q=5, s_k=7, d=16, h_k=None, d_v=None):
    h_k = h_k or h
    return (b, h, s_q, d), (b, h_k, s_k, d), (b, h_k, s_k, d_v or d)


def seen(*shape):
    mask = torch.rand(*shape) < 0.6
    mask[..., 0, :] = False  # rows that see no key
    return mask


def hiding(*shape):
    mask = normal(*shape)
    mask[..., 1:2, :] = -torch.inf
    return mask


# name -> (tensors, options)
CASES = {
    "plain": lambda: (heads_first(*square()), {}),
    "memory [b, s, h, d]": lambda: (heads_second(*square()), {}),
    "causal": lambda: (heads_first(*square(s_q=7)), {"is_causal": True}),
    "causal, more keys": lambda: (heads_first(*square()), {"is_causal": True}),
    "causal, more queries": lambda: (heads_first(*square(s_q=9)), {"is_causal": True}),
    "scale": lambda: (heads_first(*square()), {"scale": 0.3}),
    "scale 0": lambda: (heads_first(*square()), {"scale": 0.0}),
    "negative scale": lambda: (heads_first(*square()), {"scale": -1}),
    "d_v": lambda: (heads_first(*square(d_v=8)), {}),
    "grouped": lambda: (heads_first(*square(h_k=2)), {"enable_gqa": True}),
    "one head for all": lambda: (heads_first(*square(h_k=1)), {"enable_gqa": True, "is_causal": True}),
    "grouped, same heads": lambda: (heads_first(*square()), {"enable_gqa": True}),
    "grouped, rank 3": lambda: (heads_first((4, 5, 16), (2, 7, 16), (2, 7, 16)), {"enable_gqa": True}),
    "grouped, rank 5": lambda: (heads_first((2, 3, 4, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8)), {"enable_gqa": True}),
    "bool mask": lambda: (heads_first(*square()), {"attn_mask": seen(2, 4, 5, 7)}),
    "bool mask of a batch": lambda: (heads_first(*square()), {"attn_mask": seen(2, 1, 5, 7)}),
    "bool mask of heads": lambda: (heads_first(*square()), {"attn_mask": seen(4, 5, 7)}),
    "bool mask of rows": lambda: (heads_first(*square()), {"attn_mask": seen(5, 7)}),
    "bool mask, grouped": lambda: (heads_first(*square(h_k=2)), {"attn_mask": seen(2, 4, 5, 7), "enable_gqa": True}),
    "expanded bool mask": lambda: (heads_first(*square()), {"attn_mask": seen(2, 1, 5, 7).expand(2, 4, 5, 7)}),
    "float mask": lambda: (heads_first(*square()), {"attn_mask": hiding(2, 4, 5, 7)}),
    "float mask of rows": lambda: (heads_first(*square()), {"attn_mask": hiding(5, 7)}),
    "mask and causal": lambda: (heads_first(*square()), {"attn_mask": seen(2, 4, 5, 7), "is_causal": True}),
    "float mask and causal": lambda: (heads_first(*square()), {"attn_mask": hiding(5, 7), "is_causal": True}),
    "rank 2": lambda: (heads_first((5, 16), (7, 16), (7, 8)), {}),
    "rank 2, mask": lambda: (heads_first((5, 16), (7, 16), (7, 8)), {"attn_mask": seen(5, 7)}),
    "rank 3": lambda: (heads_first((3, 5, 16), (3, 7, 16), (3, 7, 8)), {"is_causal": True}),
    "rank 3, mask": lambda: (heads_first((3, 5, 16), (3, 7, 16), (3, 7, 8)), {"attn_mask": seen(3, 5, 7)}),
    "rank 3, one key": lambda: (heads_first((3, 5, 16), (1, 7, 16), (1, 7, 16)), {}),
    "rank 5": lambda: (heads_first((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)), {"is_causal": True}),
    "rank 5, mask": lambda: (
        heads_first((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
        {"attn_mask": seen(2, 3, 1, 5, 7)},
    ),
    "rank 5, mask of rows": lambda: (
        heads_first((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)),
        {"attn_mask": hiding(4, 5, 7)},
    ),
    "heads of one": lambda: (heads_first((2, 4, 5, 16), (2, 1, 7, 16), (2, 1, 7, 16)), {}),
    "other strides": lambda: ([x[..., ::2, :16] for x in heads_first(*square(s_q=9, s_k=15, d=24))], {}),
    "no batch": lambda: (heads_first(*square(b=0)), {}),
    "no queries": lambda: (heads_first(*square(s_q=0)), {"is_causal": True}),
    "no keys": lambda: (heads_first(*square(s_k=0)), {}),
    "no keys, causal": lambda: (heads_first(*square(s_k=0)), {"is_causal": True}),
    "no keys, mask": lambda: (heads_first(*square(s_k=0)), {"attn_mask": torch.ones(5, 0, dtype=torch.bool)}),
}


def problem(name, dtype, device="cpu", seed=0):
    torch.manual_seed(seed)
    tensors, options = CASES[name]()
    options = {key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in options.items()}
    return [x.to(device, dtype) for x in tensors], options


def in_double(tensors, options):
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = {**options, "attn_mask": mask.double()}
    return PYTORCHS(*(x.double() for x in tensors), **options)


def as_textbook(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    """The contract's reference (1.10): sums in float32 term after term, P rounded to q's type, the output once."""
    dtype, (q, k, v) = q.dtype, (x.float() for x in (q, k, v))
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    x = sum((q[..., c, None] * k[..., None, :, c] for c in range(q.shape[-1])), torch.zeros(()))
    x = x * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = torch.ones(x.shape[-2:], dtype=torch.bool)
    seen = seen.tril() if is_causal else seen
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = seen & attn_mask
    elif attn_mask is not None:
        x = x + attn_mask
    x = x.masked_fill(~seen, -torch.inf)
    p = (x - x.amax(-1, keepdim=True).nan_to_num(neginf=0.0)).exp() if x.shape[-1] else x
    total, out = torch.zeros(()), torch.zeros(())
    for j in range(x.shape[-1]):
        total = total + p[..., j, None]
        out = out + p[..., j, None].to(dtype).float() * v[..., j, None, :]
    return (out / total).nan_to_num(nan=0.0).to(dtype)


def assert_as_pytorch(*draws):
    """draws: (actual, tensors, options) of one case. The largest error of a few elements is chance, the reference's as
    much as foveal's: several draws count as one."""
    largest = []
    for actual, tensors, options in draws:
        expected, plain = in_double(tensors, options), PYTORCHS(*tensors, **options)
        assert actual.shape == plain.shape and actual.dtype == plain.dtype and actual.device == plain.device
        rounded = expected.to(plain.dtype).double()
        assert oracle.same_where_not_finite(actual.double().cpu().numpy(), rounded.cpu().numpy())
        assert ((actual == 0).all(-1) == (plain == 0).all(-1)).all()
        textbook = as_textbook(*(x.cpu() for x in tensors), **on_cpu(options)).to(expected.device)
        largest.append([max_of((x.double() - expected).abs()) for x in (actual, textbook, rounded)])
    error, textbook_error, rounding = map(max, zip(*largest, strict=True))
    assert error <= oracle.MAX_FACTOR * textbook_error + rounding


def on_cpu(options):
    return {key: x.cpu() if isinstance(x, torch.Tensor) else x for key, x in options.items()}


def max_of(x):
    return x.max().item() if x.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_meaning(name, dtype):
    draws = []
    for seed in range(8):
        tensors, options = problem(name, dtype, seed=seed)
        before = copy.deepcopy(tensors)
        draws.append((compat.sdpa(*tensors, **options), tensors, options))
        assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))
    assert_as_pytorch(*draws)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float_masks_of_either_type(dtype):
    tensors, options = problem("float mask", dtype)
    for mask_dtype in (torch.float32, dtype):
        given = {"attn_mask": options["attn_mask"].to(mask_dtype)}
        assert_as_pytorch((compat.sdpa(*tensors, **given), tensors, given))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_the_lowest_number_hides_no_key(dtype):
    tensors, _ = problem("plain", dtype)
    mask = torch.full((5, 7), torch.finfo(dtype).min, dtype=dtype)
    actual = compat.sdpa(*tensors, mask)
    torch.testing.assert_close(actual, tensors[2].mean(-2, keepdim=True).expand_as(actual))


def test_no_heads():  # PyTorch 2.11's own function ends the process here with a division by 0
    q, k, v = torch.ones(2, 0, 5, 8), torch.ones(2, 0, 7, 8), torch.ones(2, 0, 7, 4)
    assert compat.sdpa(q, k, v).shape == (2, 0, 5, 4)
    assert compat.sdpa(q, k, v, enable_gqa=True, is_causal=True).shape == (2, 0, 5, 4)
    assert compat.sdpa(q[0], k[0], v[0]).shape == (0, 5, 4)


def test_signature():
    documented = inspect.signature(compat.sdpa)
    positional = {"query": None, "key": None, "value": None, "attn_mask": None, "dropout_p": 0.0, "is_causal": False}
    by_name = {"scale": None, "enable_gqa": False}
    assert list(documented.parameters) == [*positional, *by_name]
    for name, parameter in documented.parameters.items():
        assert parameter.kind == (parameter.KEYWORD_ONLY if name in by_name else parameter.POSITIONAL_OR_KEYWORD)
        if name not in ("query", "key", "value"):
            assert parameter.default == (positional | by_name)[name]
    tensors, _ = problem("plain", torch.float32)
    assert torch.equal(compat.sdpa(*tensors, None, 0.0, True), compat.sdpa(*tensors, is_causal=True))
    for function in (PYTORCHS, compat.sdpa):
        with pytest.raises(TypeError):
            function(*tensors, None, 0.0, True, 0.5)
        with pytest.raises(TypeError, match="is_causal"):
            function(*tensors, is_causal=1)


@pytest.mark.parametrize("device_type", ["cpu"])
def test_autocast(device_type):
    tensors, options = problem("float mask", torch.float32)
    given = [tensors[0], tensors[1].bfloat16(), tensors[2]]
    with torch.autocast(device_type, torch.bfloat16):
        actual = compat.sdpa(*given, **options)
    cast = {"attn_mask": options["attn_mask"].bfloat16()}
    assert_as_pytorch((actual, [x.bfloat16() for x in given], cast))


# ---- Refusals --------------------------------------------------------------------------------------------------------

Q, K, V = square()
UNSUPPORTED = {
    "value.shape is .* as many heads as key's": lambda: (
        heads_first((2, 4, 5, 8), (2, 2, 7, 8), (2, 4, 7, 8)),
        {"enable_gqa": True},
    ),
    "query.dtype is torch.float64": lambda: ([x.double() for x in heads_first(Q, K, V)], {}),
    "key has shape .* one in memory": lambda: (
        [normal(2, 3, 4, 5, 8), normal(3, 2, 4, 7, 8).transpose(0, 1), normal(2, 3, 4, 7, 8)],
        {},
    ),
}
INVALID = {
    "key.dtype is torch.float16 but query.dtype": lambda: ([normal(*Q), normal(*K).half(), normal(*V)], {}),
    "query has rank 1": lambda: (heads_first((16,), (7, 16), (7, 16)), {}),
    "query has rank 2, and enable_gqa": lambda: (heads_first((5, 16), (7, 16), (7, 16)), {"enable_gqa": True}),
    "do not broadcast": lambda: (heads_first(*square(h_k=2)), {}),
    "key.shape is .* must divide query's 4": lambda: (heads_first(*square(h_k=3)), {"enable_gqa": True}),
    "key.shape is .* last size must be query's": lambda: (heads_first(Q, (2, 4, 7, 8), (2, 4, 7, 8)), {}),
    "attn_mask.dtype is torch.float64": lambda: (heads_first(Q, K, V), {"attn_mask": normal(5, 7).double()}),
    "attn_mask.dtype is torch.int64": lambda: (heads_first(Q, K, V), {"attn_mask": torch.ones(5, 7).long()}),
    "attn_mask.shape is .* broadcast": lambda: (
        heads_first((1, 1, 5, 8), (1, 1, 7, 8), (1, 1, 7, 8)),
        {"attn_mask": normal(2, 3, 5, 7)},
    ),
    "attn_mask.shape is .*6.* broadcast": lambda: (heads_first(Q, K, V), {"attn_mask": normal(6, 7)}),
    "attn_mask is given and is_causal": lambda: (
        heads_first((3, 5, 8), (3, 7, 8), (3, 7, 8)),
        {"attn_mask": normal(5, 7), "is_causal": True},
    ),
    "attn_mask is given and is_causal .* d_v = d": lambda: (
        heads_first(*square(d_v=8)),
        {"attn_mask": normal(5, 7), "is_causal": True},
    ),
    "attn_mask is given and is_causal .* without broadcasting": lambda: (
        heads_first(*square(h_k=1)),
        {"attn_mask": normal(5, 7), "is_causal": True},
    ),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_foveal_cannot_do(message):
    tensors, options = UNSUPPORTED[message]()
    with pytest.raises(foveal.UnsupportedError, match=message):
        compat.sdpa(*tensors, **options)
    PYTORCHS(*tensors, **options)


@pytest.mark.parametrize("message", INVALID)
def test_what_pytorch_refuses_too(message):
    tensors, options = INVALID[message]()
    with pytest.raises(foveal.InvalidArgument, match=message):
        compat.sdpa(*tensors, **options)
    with pytest.raises((RuntimeError, IndexError)):
        PYTORCHS(*tensors, **options)


def test_lengths_that_pytorch_does_not_compare():  # it reads behind the end of value
    with pytest.raises(foveal.InvalidArgument, match="value.shape"):
        compat.sdpa(normal(*Q), normal(*K), normal(2, 4, 6, 16))


def test_the_last_stride():
    q, k, v = heads_first(Q, K, V)
    with pytest.raises(foveal.Error, match="v.stride"):
        compat.sdpa(q, k, v.mT.contiguous().mT)


def test_gradients_and_tangents():
    q, k, v = heads_first(Q, K, V)
    with torch.no_grad():
        compat.sdpa(q.requires_grad_(), k, v)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(k, torch.ones_like(k))
        with pytest.raises(foveal.UnsupportedError, match="has a tangent"), torch.no_grad():
            compat.sdpa(q, dual, v)


# ---- Traces and modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "bool mask of rows", "grouped", "rank 3", "rank 5", "mask and causal"])
def test_compile(name):
    torch._dynamo.reset()
    tensors, options = problem(name, torch.float32)
    compiled = torch.compile(lambda *x: compat.sdpa(*x, **options) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), compat.sdpa(*tensors, **options) + 1)


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda *x: compat.sdpa(*x, is_causal=True), fullgraph=True, dynamic=True, backend=counter)
    for s in (8, 9, 31):
        tensors = heads_first(*square(s_q=s, s_k=s + 2))
        assert torch.equal(compiled(*tensors), compat.sdpa(*tensors, is_causal=True))
    assert counter.frame_count == 1


def test_torch_function():
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    tensors, called = heads_first(Q, K, V), []
    expected = compat.sdpa(*tensors)
    with Mode():
        actual = compat.sdpa(*tensors)
    assert called[0] is compat.sdpa and torch.equal(actual, expected)
    with torch.device("meta"):  # a mode as well
        assert compat.sdpa(*tensors).device.type == "cpu"


def allocated(call):
    """Bytes that PyTorch allocates on the CPU during the call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        call()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_shared_masks_are_not_copied(dtype):
    q, k = heads_first((4, 8, 32, 16), (4, 8, 500, 16))
    of_batches = seen(4, 1, 1, 500).to(dtype)
    one = of_batches[0, 0, 0]
    shared = (of_batches, of_batches.expand(4, 8, 32, 500), one.expand(32, 500), one.expand(4, 8, 32, 500))
    shared += (seen(32, 1).to(dtype).expand(32, 500),)
    for mask in shared:
        out = q.numel() * q.element_size()
        assert allocated(lambda mask=mask: compat.sdpa(q, k, k, mask)) == out
    whole = shared[1]
    assert allocated(lambda: compat.sdpa(q, k, k, whole.contiguous())) == out + whole.numel() * whole.element_size()
