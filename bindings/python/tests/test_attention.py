"""foveal.attention with tensors of every library: values, options, results' kinds, refusals."""

import subprocess
import sys
import threading

import foveal
import numpy as np
import oracle
import pytest

ml_dtypes = pytest.importorskip("ml_dtypes", reason="SKIPPED: no ml_dtypes")
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def inputs(dtype=np.float32, b=2, s_q=33, s_k=49, h_q=4, h_k=2, d=16, d_v=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (b, s_q, h_q, d), (b, s_k, h_k, d), (b, s_k, h_k, d_v or d)
    return [rng.standard_normal(shape, dtype=np.float32).astype(dtype) for shape in shapes]


def option_cases():
    rng = np.random.default_rng(1)
    mask = rng.random((2, 1, 33, 49)) < 0.7
    mask[0, 0, 5] = False  # a row that sees nothing
    bias = rng.standard_normal((1, 4, 33, 49)).astype(np.float32)
    return {
        "plain": {},
        "scale": {"scale": 0.3},
        "causal": {"causal": True},
        "causal top left": {"causal": True, "align": "top_left"},
        "window": {"window": (7, 3)},
        "left only": {"window": (9, None)},
        "causal window": {"window": (9, 0), "causal": True},
        "softcap": {"softcap": 2.0, "causal": True},
        "chunk": {"chunk": 16, "causal": True},
        "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32), "causal": True},
        "alibi of each sequence": {"alibi_slopes": rng.random((2, 4), dtype=np.float32)},
        "sinks": {"sinks": np.array([0.5, -1.0, 2.0, 0.0], np.float32), "causal": True},
        "bias": {"bias": bias, "causal": True},
        "mask": {"mask": mask},
        "mask and sinks": {"mask": mask, "sinks": np.zeros(4, np.float32)},
        "used lengths": {"seqused_k": np.array([20, 49], np.int32), "causal": True},
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", option_cases())
def test_options_in_numpy(name, dtype):
    options = option_cases()[name]
    q, k, v = inputs(dtype)
    out, lse = foveal.attention(q, k, v, return_lse=True, **options)
    assert isinstance(out, np.ndarray) and out.dtype == dtype and lse.dtype == np.float32
    oracle.assert_close(out, q, k, v, dtype, lse=lse, **options)
    assert (foveal.attention(q, k, v, **options) == out).all()


@pytest.mark.parametrize("name", option_cases())
def test_options_in_torch(name, device, require):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    arrays = inputs(ml_dtypes.bfloat16, d=64)
    options = option_cases()[name]
    q, k, v = (torch.from_numpy(x.astype(np.float32)).to(device, torch.bfloat16) for x in arrays)
    tensors = {key: torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x for key, x in options.items()}
    require(foveal.supports(q, k, v, return_lse=True, **tensors), device)
    out, lse = foveal.attention(q, k, v, return_lse=True, **tensors)
    assert out.device == q.device and out.dtype == torch.bfloat16 and out.is_contiguous() and lse.dtype == torch.float32
    oracle.assert_close(out.float().cpu(), *arrays, ml_dtypes.bfloat16, lse=lse.cpu(), **options)


def test_uneven_head_dims_and_views():
    q, k, v = inputs(d=24, d_v=40)
    oracle.assert_close(foveal.attention(q, k, v), q, k, v, np.float32)
    heads_first = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (q, k, v)]  # [b, h, s, d], as torch has them
    views = [x.transpose(0, 2, 1, 3) for x in heads_first]
    assert (foveal.attention(*views) == foveal.attention(q, k, v)).all()
    out = np.full((2, 4, 33, 40), np.nan, np.float32)
    result = foveal.attention(*views, out=out.transpose(0, 2, 1, 3))
    assert (result == foveal.attention(q, k, v)).all() and not np.isnan(out).any()


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 3), (2, 3, 0)], ids=["no batch", "no queries", "no keys"])
def test_nothing_to_do(shape):
    b, s_q, s_k = shape
    q, k, v = inputs(b=b, s_q=s_q, s_k=s_k)
    out, lse = foveal.attention(q, k, v, return_lse=True)
    assert out.shape == q.shape and (out == 0).all() and (lse == -np.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_jax(dtype):
    jax = pytest.importorskip("jax", reason="SKIPPED: no JAX")
    q, k, v = inputs(dtype)
    on_cpu = [jax.device_put(x, jax.devices("cpu")[0]) for x in (q, k, v)]
    out, lse = foveal.attention(*on_cpu, causal=True, return_lse=True)
    assert isinstance(out, jax.Array) and out.dtype == dtype and lse.dtype == np.float32
    oracle.assert_close(np.asarray(out), q, k, v, dtype, lse=lse, causal=True)
    with pytest.raises(foveal.UnsupportedError, match="out is a JAX array"):
        foveal.attention(*on_cpu, out=out)


@pytest.mark.gpu
def test_cupy():
    cupy = pytest.importorskip("cupy", reason="SKIPPED: no CuPy")
    arrays = inputs(np.float16, d=64)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        q, k, v = (cupy.asarray(x) for x in arrays)
        out, lse = foveal.attention(q, k, v, causal=True, return_lse=True)
        stream.synchronize()
    assert isinstance(out, cupy.ndarray) and out.dtype == np.float16
    oracle.assert_close(out.get(), *arrays, np.float16, lse=lse.get(), causal=True)


def test_torch_result_is_its_own_memory():
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    q, k, v = (torch.from_numpy(x) for x in inputs())
    out = torch.full_like(q, float("nan"))
    assert foveal.attention(q, k, v, out=out) is out
    assert torch.equal(out, foveal.attention(q, k, v))
    fused = torch.randn(2, 20, 3, 4, 16)  # q, k and v as slices of one tensor
    assert foveal.attention(*fused.unbind(2)).is_contiguous()
    assert foveal.attention(torch.nn.Parameter(q, requires_grad=False), k, v).shape == q.shape


SHARED = [(2, 1, 1, 49), (1, 1, 33, 1), (4, 1, 1), (33, 49), (1, 49), (49,), (1,), (2, 1, 1, 1)]


@pytest.mark.parametrize("shape", SHARED, ids=str)
def test_masks_and_biases_broadcast_as_in_numpy(shape):
    q, k, v = inputs()
    rng = np.random.default_rng(2)
    for name, values in {"mask": rng.random(shape) < 0.7, "bias": rng.standard_normal(shape, np.float32)}.items():
        whole = np.broadcast_to(values, (2, 4, 33, 49))
        out = foveal.attention(q, k, v, **{name: values})
        oracle.assert_close(out, q, k, v, np.float32, **{name: whole})
        expanded = np.lib.stride_tricks.as_strided(values, whole.shape, whole.strides)
        assert (foveal.attention(q, k, v, **{name: expanded}) == out).all()


def test_expanded_mask_is_shared():
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    arrays = inputs()
    q, k, v = (torch.from_numpy(x) for x in arrays)
    mask = torch.rand(2, 1, 33, 49) < 0.5
    out = foveal.attention(q, k, v, mask=mask.expand(-1, 4, -1, -1))
    oracle.assert_close(out, *arrays, np.float32, mask=mask.numpy())


def test_gradient_is_recorded():
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    q, k, v = (torch.from_numpy(x) for x in inputs())
    v.requires_grad_()
    foveal.attention(q, k, v).sum().backward()
    assert v.grad.shape == v.shape
    with torch.no_grad():
        assert not foveal.attention(q, k, v).requires_grad


REFUSALS = {
    "q has rank 3": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q[0], k, v)),
    "k.shape\\[0\\] is 1 but q": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k[:1], v)),
    "v.shape\\[1\\] is 5": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v[:, :5])),
    "k.dtype is f16": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k.astype(np.float16), v)),
    "q.dtype is float64": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q.astype(np.float64), k, v)),
    "q.stride\\[3\\] is 2": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q[..., ::2], k[..., ::2], v)),
    "v is of type list": (TypeError, lambda q, k, v: foveal.attention(q, k, v.tolist())),
    "v is of type NoneType": (TypeError, lambda q, k, v: foveal.attention(q, k, None)),
    "scale is nan": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v, scale=float("nan"))),
    "scale is 'x'": (TypeError, lambda q, k, v: foveal.attention(q, k, v, scale="x")),
    "causal is 1": (TypeError, lambda q, k, v: foveal.attention(q, k, v, causal=1)),
    "window is 3": (TypeError, lambda q, k, v: foveal.attention(q, k, v, window=3)),
    "window\\[0\\] is -1": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v, window=(-1, 0))),
    "window\\[1\\] is 5 and causal": (
        foveal.InvalidArgument,
        lambda q, k, v: foveal.attention(q, k, v, window=(None, 5), causal=True),
    ),
    "align is 'top'": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v, align="top")),
    "softcap is -1": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v, softcap=-1.0)),
    "chunk is 1.5": (TypeError, lambda q, k, v: foveal.attention(q, k, v, chunk=1.5)),
    "sinks.shape\\[0\\] is 3": (
        foveal.InvalidArgument,
        lambda q, k, v: foveal.attention(q, k, v, sinks=np.zeros(3, np.float32)),
    ),
    "seqused_k.dtype is int64": (
        foveal.InvalidArgument,
        lambda q, k, v: foveal.attention(q, k, v, seqused_k=np.array([1, 2])),
    ),
    "mask.dtype is f32": (
        foveal.InvalidArgument,
        lambda q, k, v: foveal.attention(q, k, v, mask=np.zeros((1, 1, 33, 49), np.float32)),
    ),
    "out.shape\\[1\\] is 32": (foveal.InvalidArgument, lambda q, k, v: foveal.attention(q, k, v, out=q[:, 1:].copy())),
    "unexpected keyword argument .dropout": (TypeError, lambda q, k, v: foveal.attention(q, k, v, dropout=0.1)),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals_name_the_argument(message):
    error, call = REFUSALS[message]
    with pytest.raises(error, match=message):
        call(*inputs())


def test_arguments_are_matched_as_python_does():
    q, k, v = inputs()
    expected = foveal.attention(q, k, v, causal=True)
    assert (foveal.attention(v=v, q=q, causal=True, k=k) == expected).all()
    assert (foveal.attention(q, k, v, **{"".join(["cau", "sal"]): True}) == expected).all()
    for message, call in {
        "takes 3 positional arguments but 4 were given": lambda: foveal.attention(q, k, v, 0.5),
        "missing required argument: 'v'": lambda: foveal.attention(q, k, causal=True),
        "got multiple values for argument 'k'": lambda: foveal.attention(q, k, v, k=k),
        "got an unexpected keyword argument '.udc80'": lambda: foveal.attention(q, k, v, **{"\udc80": 1}),
    }.items():
        with pytest.raises(TypeError, match=f"^attention.. {message}"):
            call()
    with pytest.raises(TypeError, match="^attention_varlen.. missing required argument: 'cu_seqlens_q'"):
        foveal.attention_varlen(q[0], k[0], v[0])
    with pytest.raises(TypeError, match="^attention_varlen.. got an unexpected keyword argument 'mask'"):
        foveal.attention_varlen(q[0], k[0], v[0], None, None, mask=None)
    with pytest.raises(TypeError, match="^merge.. missing required argument: 'outs'"):
        foveal.merge()


class Exporter:
    """A tensor of a library that speaks DLPack in its own way."""

    def __init__(self, array, place=(1, 0), capsule=None):
        self.array, self.place, self.capsule = array, place, capsule

    def __dlpack__(self, **options):
        if isinstance(self.capsule, Exception):
            raise self.capsule
        return self.array.__dlpack__() if self.capsule is None else self.capsule

    def __dlpack_device__(self):
        return self.place


class Interrupted(Exporter):
    def __dlpack__(self, **options):
        raise KeyboardInterrupt


PLACES = [[1, 0], 1, None, "ab", (), (1,), (1, 0, 0), ("a", 0), (1, None), (1.5, 0), (2**40, 0), (1, 2**70), object()]


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_any_dlpack_device(place):
    x = np.zeros((1, 2, 1, 8), np.float32)
    assert (foveal.attention(Exporter(x), x, x, out=np.empty_like(x)) == 0).all()
    for tensors, name in (((Exporter(x, place), x, x), "q"), ((x, x, Exporter(x, place)), "v")):
        with pytest.raises((TypeError, foveal.InvalidArgument), match=f"^{name}.__dlpack_device__"):
            foveal.attention(*tensors, out=np.empty_like(x))
    with pytest.raises((TypeError, foveal.InvalidArgument), match="^out.__dlpack_device__"):
        foveal.attention(x, x, x, out=Exporter(np.empty_like(x), place))


def test_exports_that_fail_name_the_argument():
    x = np.zeros((1, 2, 1, 8), np.float32)
    for capsule in (3, "dltensor", x):
        with pytest.raises(TypeError, match="^k.__dlpack__\\(\\) is "):
            foveal.attention(x, Exporter(x, capsule=capsule), x)
    for error in (BufferError("no"), RuntimeError("no"), ValueError("no")):
        with pytest.raises(foveal.InvalidArgument, match="^k .*cannot be read through DLPack: no"):
            foveal.attention(x, Exporter(x, capsule=error), x)
    with pytest.raises(KeyboardInterrupt):
        foveal.attention(x, Interrupted(x), x)
    for array in (np.zeros((1, 2, 1, 8), ">f4"), np.zeros((1, 2, 1, 8), "U3"), np.zeros((1, 2, 1, 8), object)):
        with pytest.raises(foveal.InvalidArgument, match="^mask "):
            foveal.attention(x, x, x, mask=array)
    with pytest.raises(foveal.UnsupportedError, match="^v is a .*MaskedArray.*mask"):
        foveal.attention(x, x, np.ma.masked_less(x, 1))


WORDS = {
    "q.dtype is float64; foveal takes bfloat16, float16, float32 and float8_e4m3fn": lambda x: {
        "q": x.astype(np.float64)
    },
    "seqused_k.dtype is int64; foveal takes int32": lambda x: {"seqused_k": np.array([2])},
    "mask.dtype is uint8; foveal takes bool": lambda x: {"mask": np.ones((1, 1, 2, 2), np.uint8)},
    "sinks.dtype is float64; foveal takes float32": lambda x: {"sinks": np.ones(1)},
    "alibi_slopes.dtype is int64; foveal takes float32": lambda x: {"alibi_slopes": np.ones(1, int)},
    "softcap is None": lambda x: {"softcap": None},
    "chunk is 'a'": lambda x: {"chunk": "a"},
    "causal is None": lambda x: {"causal": None},
    "align is None": lambda x: {"align": None},
    "align is '.udc80'": lambda x: {"align": "\udc80"},
    "return_lse is None": lambda x: {"return_lse": None},
    "window is \\(1,\\)": lambda x: {"window": (1,)},
    "window\\[1\\] is 1.5": lambda x: {"window": (1, 1.5)},
}


@pytest.mark.parametrize("message", WORDS)
def test_messages_say_what_is_possible(message):
    x = np.zeros((1, 2, 1, 8), np.float32)
    arguments = {"q": x, "k": x, "v": x} | WORDS[message](x)
    with pytest.raises((TypeError, foveal.Error), match=f"^{message}"):
        foveal.attention(**arguments)
    with pytest.raises((TypeError, foveal.Error), match=f"^{message}"):
        foveal.supports(**arguments)


def test_read_only():
    q, k, v = inputs()
    q.flags.writeable = False
    foveal.attention(q, k, v)  # an input may be
    out = np.empty_like(q)
    out.flags.writeable = False
    with pytest.raises(foveal.InvalidArgument, match="out is read-only"):
        foveal.attention(q, k, v, out=out)


def test_kinds_of_errors():
    assert issubclass(foveal.Error, RuntimeError)
    assert issubclass(foveal.InvalidArgument, (foveal.Error, ValueError))
    assert issubclass(foveal.UnsupportedError, (foveal.Error, NotImplementedError))
    assert issubclass(foveal.OutOfMemoryError, (foveal.Error, MemoryError))
    assert issubclass(foveal.NoDeviceError, foveal.Error) and issubclass(foveal.CudaError, foveal.Error)


def test_no_framework_is_imported():
    code = """
import sys
import foveal
loaded = {name for name in ("torch", "numpy", "jax", "cupy", "transformers") if name in sys.modules}
assert not loaded, loaded
import numpy as np
x = np.zeros((1, 4, 2, 8), np.float32)
foveal.attention(x, x, x)
loaded = {name for name in ("torch", "jax", "cupy", "transformers") if name in sys.modules}
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_threads():
    q, k, v = inputs(s_q=200, s_k=200)
    expected = foveal.attention(q, k, v, causal=True)
    wrong = []

    def work():
        for _ in range(20):
            if not (foveal.attention(q, k, v, causal=True) == expected).all():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_gil_is_released():
    q, k, v = inputs(b=1, s_q=2048, s_k=2048, h_q=8, h_k=8, d=64)
    running, counts = threading.Event(), []

    def call():
        running.set()
        foveal.attention(q, k, v)
        running.clear()

    thread = threading.Thread(target=call)
    thread.start()
    running.wait()
    while running.is_set():
        counts.append(1)
    thread.join()
    assert len(counts) > 100


def test_references_are_kept_and_returned():
    q, k, v = inputs()
    before = [sys.getrefcount(x) for x in (q, k, v)]
    for _ in range(10):
        foveal.attention(q, k, v, return_lse=True)
        with pytest.raises(foveal.InvalidArgument):
            foveal.attention(q, k, v[:, :3], mask=np.ones((1, 1, 33, 49), bool))
    assert [sys.getrefcount(x) for x in (q, k, v)] == before
