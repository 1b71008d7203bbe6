"""foveal.jax on the CPU: jit, vmap, sharding, derivatives, lowering for CUDA; jax.nn.dot_product_attention."""

import inspect
import os

import pytest

jax = pytest.importorskip("jax", reason="SKIPPED: no JAX")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import foveal  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import oracle  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from test_attention import inputs, option_cases  # noqa: E402

try:
    import foveal.jax as foveal_jax
except ImportError as error:
    pytest.skip(f"SKIPPED: {error}", allow_module_level=True)

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
cpu = jax.devices("cpu")[0]
beside_jax_nn = pytest.mark.skipif(
    "return_residual" not in inspect.signature(jax.nn.dot_product_attention).parameters,
    reason="SKIPPED: this JAX's own function gives no residual",
)


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(cpu):
        yield


def compiled(**options):
    return jax.jit(lambda *x: foveal_jax.attention(*x, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", option_cases())
def test_options(name, dtype):
    options = option_cases()[name]
    arrays = inputs(dtype)
    out, lse = compiled(return_lse=True, **options)(*arrays)
    assert isinstance(out, jax.Array) and out.dtype == dtype and lse.dtype == np.float32
    expected, expected_lse = foveal.attention(*arrays, return_lse=True, **options)
    assert np.array_equal(out, expected) and np.array_equal(lse, expected_lse)
    oracle.assert_close(np.asarray(out), *arrays, dtype, lse=np.asarray(lse), **options)
    assert np.array_equal(foveal_jax.attention(*arrays, **options), expected)


def test_rows_behind_the_used_length():
    q, k, v = inputs()
    used = np.array([20, 0], np.int32)
    expected, expected_lse = foveal.attention(q, k, v, seqused_q=used, causal=True, return_lse=True)
    out, lse = compiled(seqused_q=used, causal=True, return_lse=True)(q, k, v)
    assert np.array_equal(out, expected) and np.array_equal(lse, expected_lse)
    assert not out[1].any() and np.isneginf(lse[0, :, 20:]).all()


def test_arrays_that_are_traced():
    q, k, v = inputs()
    mask = np.random.default_rng(1).random((1, 1, 33, 49)) < 0.7
    used = np.array([20, 49], np.int32)
    traced = jax.jit(lambda q, k, v, mask, used: foveal_jax.attention(q, k, v, mask=mask, seqused_k=used))
    assert np.array_equal(traced(q, k, v, mask, used), foveal.attention(q, k, v, mask=mask, seqused_k=used))


@pytest.mark.parametrize("d_v", [8, 40])
def test_sizes(d_v):
    arrays = inputs(d_v=d_v)
    assert np.array_equal(compiled()(*arrays), foveal.attention(*arrays))
    for empty in ({"b": 0}, {"s_q": 0}, {"s_k": 0}):
        arrays = inputs(**empty)
        assert np.array_equal(compiled()(*arrays), foveal.attention(*arrays))


def test_layouts():
    q, k, v = inputs()
    heads_first = [jnp.asarray(x.transpose(0, 2, 1, 3)) for x in (q, k, v)]
    out = jax.jit(lambda *x: foveal_jax.attention(*(y.transpose(0, 2, 1, 3) for y in x), causal=True))(*heads_first)
    assert np.array_equal(out, foveal.attention(q, k, v, causal=True))


# ---- vmap ------------------------------------------------------------------------------------------------------------


def mapped_inputs():
    rng = np.random.default_rng(0)
    arrays = {"q": (2, 9, 4, 16), "k": (2, 11, 2, 16), "v": (2, 11, 2, 8), "bias": (2, 1, 9, 11), "sinks": (4,)}
    return {name: rng.standard_normal((3, *shape), dtype=np.float32) for name, shape in arrays.items()}


VMAPS = {
    "all": {"q": 0, "k": 0, "v": 0},
    "other axes": {"q": 1, "k": 3, "v": 4},
    "q alone": {"q": 0, "k": None, "v": None},
    "k and v": {"q": None, "k": 1, "v": 2},
    "v alone": {"q": None, "k": None, "v": 4},
    "bias": {"q": 0, "k": 0, "v": None, "bias": 2},
    "bias of all": {"q": 0, "k": 0, "v": 0, "bias": None},
    "sinks": {"q": 0, "k": 0, "v": None, "sinks": 1},
    "sinks of all": {"q": 0, "k": 0, "v": 0, "sinks": None},
}


def one_by_one(axes, arrays, **options):
    results = []
    for i in range(3):
        given = {name: arrays[name][0 if axis is None else i] for name, axis in axes.items()}
        results.append(foveal.attention(given.pop("q"), given.pop("k"), given.pop("v"), **given, **options))
    return [np.stack(x) for x in zip(*results, strict=True)] if options.get("return_lse") else np.stack(results)


def placed(axes, arrays):
    return [arrays[n][0] if a is None else np.moveaxis(arrays[n], 0, a) for n, a in axes.items()]


def named(axes, **options):
    return lambda q, k, v, *rest: foveal_jax.attention(
        q, k, v, **dict(zip(list(axes)[3:], rest, strict=True)), **options
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", VMAPS)
def test_vmap(name, batch):
    axes = VMAPS[name]
    arrays = {key: x[:, :batch] if key != "sinks" else x for key, x in mapped_inputs().items()}
    mapped = jax.vmap(named(axes, causal=True, return_lse=True), in_axes=tuple(axes.values()))
    out, lse = jax.jit(mapped)(*placed(axes, arrays))
    expected, expected_lse = one_by_one(axes, arrays, causal=True, return_lse=True)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_nested_vmap(batch):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 5, batch, 9, 4, 16), dtype=np.float32)
    k, v = rng.standard_normal((2, 5, batch, 11, 2, 16), dtype=np.float32)
    inner = jax.vmap(lambda q, k, v: foveal_jax.attention(q, k, v, causal=True))
    out = jax.vmap(inner, in_axes=(0, None, None))(q, k, v)
    inner_shared = jax.vmap(lambda q, k, v: foveal_jax.attention(q, k, v, causal=True), in_axes=(0, None, None))
    other = jax.vmap(inner_shared, in_axes=(1, 0, 0), out_axes=1)(q, k, v)
    for i in range(3):
        for j in range(5):
            expected = foveal.attention(q[i, j], k[j], v[j], causal=True)
            np.testing.assert_allclose(out[i, j], expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(other[i, j], expected, rtol=1e-6, atol=1e-6)


def test_vmap_of_lengths_and_slopes():
    arrays = mapped_inputs()
    used = np.array([[3, 11], [0, 5], [11, 1]], np.int32)
    slopes = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    call = jax.vmap(lambda q, k, v, u, s: foveal_jax.attention(q, k, v, seqused_k=u, alibi_slopes=s))
    out = call(arrays["q"], arrays["k"], arrays["v"], used, slopes)
    for i in range(3):
        given = (arrays[name][i] for name in "qkv")
        expected = foveal.attention(*given, seqused_k=used[i], alibi_slopes=slopes[i])
        np.testing.assert_allclose(out[i], expected, rtol=1e-6, atol=1e-6)


# ---- Derivatives, sharding, export -----------------------------------------------------------------------------------


def test_gradients_are_foveals():
    """Bit for bit those of foveal.attention_backward(), of which test_gradients.py asks what they are."""
    q, k, v = inputs()
    b, s_q, heads, _ = q.shape
    normal = np.random.default_rng(5).standard_normal
    options = {
        **{"sinks": normal(heads, dtype=np.float32), "bias": normal((1, heads, s_q, k.shape[1]), dtype=np.float32)},
        **{"alibi_slopes": np.full((b, heads), 0.1, np.float32), "seqused_k": np.full(b, k.shape[1] - 3, np.int32)},
    }
    dout, dlse = normal((*q.shape[:-1], v.shape[-1]), dtype=np.float32), normal((b, heads, s_q), dtype=np.float32)
    dout = dout.astype(q.dtype)

    def results(q, k, v, sinks, bias, alibi_slopes):
        given = {"sinks": sinks, "bias": bias, "alibi_slopes": alibi_slopes, "seqused_k": options["seqused_k"]}
        return foveal_jax.attention(q, k, v, causal=True, softcap=5.0, return_lse=True, **given)

    of = (q, k, v, options["sinks"], options["bias"], options["alibi_slopes"])
    (out, lse), gradient_of = jax.vjp(jax.jit(results), *of)
    main = [np.asarray(x) for x in (dout, q, k, v, out, lse)]
    expected = foveal.attention_backward(*main, dlse=dlse, causal=True, softcap=5.0, **options)
    names = ("dq", "dk", "dv", "dsinks", "dbias", "dalibi_slopes")
    for name, actual in zip(names, gradient_of((dout, dlse)), strict=True):
        assert np.array_equal(np.asarray(actual), getattr(expected, name)), name


def test_gradients_under_transforms():
    q, k, v = inputs()
    loss = lambda q, k, v: (foveal_jax.attention(q, k, v, causal=True) ** 2).sum()  # noqa: E731
    alone = [jax.grad(loss, argnums=(0, 1, 2))(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(len(q))]
    together = jax.vmap(lambda *x: jax.grad(loss, argnums=(0, 1, 2))(*(y[None] for y in x)))(q, k, v)
    for n in range(3):
        assert np.array_equal(together[n], np.stack([gradients[n] for gradients in alone]))
    of_shared_k = jax.grad(lambda k: jax.vmap(lambda q: loss(q[None], k, v[:1]))(q).sum())(k[:1])
    expected = sum(jax.grad(loss, argnums=1)(q[i : i + 1], k[:1], v[:1]) for i in range(len(q)))
    np.testing.assert_allclose(of_shared_k, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda v: foveal_jax.attention(q, k, v), (v,), (v,))


def test_sharded_operands():
    if len(jax.devices("cpu")) < 2:
        pytest.skip("SKIPPED: JAX was there before with one CPU device")
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices("cpu")[:2])
    q, k, v = inputs()
    expected = foveal.attention(q, k, v, causal=True)
    for spec in (PartitionSpec("x"), PartitionSpec(None, None, "x"), PartitionSpec()):
        sharded = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (q, k, v)]
        assert np.array_equal(compiled(causal=True)(*sharded), expected)
    if not hasattr(jax, "shard_map"):
        pytest.skip("SKIPPED: this JAX has no jax.shard_map")
    each = jax.shard_map(
        lambda *x: foveal_jax.attention(*x, causal=True), mesh=mesh, in_specs=PartitionSpec("x"),
        out_specs=PartitionSpec("x"), check_vma=False,
    )  # fmt: skip
    spread = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("x"))) for x in (q, k, v)]
    assert np.array_equal(jax.jit(each)(*spread), expected)


def test_lowered_for_cuda():
    q, k, v = (jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16) for _ in range(3))
    lowered = compiled(causal=True, return_lse=True).trace(q, k, v).lower(lowering_platforms=("cuda",))
    call = next(line for line in lowered.as_text().splitlines() if "@foveal_attention" in line)
    assert 'given = "q k v"' in call and "window_right = 0" in call
    assert "tensor<2x128x4x64xbf16>, tensor<2x4x128xf32>" in call  # the results


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", option_cases())
def test_options_on_the_gpu(name, dtype):
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"SKIPPED: JAX sees no GPU: {error}")
    arrays, options = inputs(dtype, d=64), option_cases()[name]
    placed_there = [jax.device_put(x, device) for x in arrays]
    out, lse = compiled(return_lse=True, **options)(*placed_there)
    assert out.devices() == {device}
    oracle.assert_close(np.asarray(out), *arrays, dtype, lse=np.asarray(lse), **options)


@pytest.mark.gpu
def test_what_only_the_gpu_refuses():
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"SKIPPED: JAX sees no GPU: {error}")
    arrays = [jax.device_put(x, device) for x in inputs(d=64)]
    with pytest.raises(Exception, match="float32|f32"):
        jax.block_until_ready(compiled()(*arrays))


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_refusals_name_the_argument():
    q, k, v = inputs()
    with pytest.raises(foveal.InvalidArgument, match="k.shape"):
        compiled()(q, k[:, :, :1, :8], v)
    with pytest.raises(foveal.InvalidArgument, match="mask.dtype is i32; a mask needs bool"):
        compiled(mask=np.ones((2, 1, 33, 49), np.int32))(q, k, v)
    with pytest.raises(foveal.InvalidArgument, match="v.dtype"):
        compiled()(q, k, v.astype(np.float16))
    with pytest.raises(foveal.InvalidArgument, match="align"):
        compiled(align="middle")(q, k, v)
    with pytest.raises(TypeError, match="causal is 1"):
        compiled(causal=1)(q, k, v)
    with pytest.raises(TypeError, match="scale is traced"):
        jax.jit(lambda scale: foveal_jax.attention(q, k, v, scale=scale))(0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        foveal_jax.attention(q, k, v, out=q)


def test_the_cpu_reads_the_lengths():
    q, k, v = inputs()
    used = np.array([20, 50], np.int32)
    with pytest.raises(Exception, match=r"seqused_k\[1\] is 50"):
        jax.block_until_ready(jax.jit(lambda u: foveal_jax.attention(q, k, v, seqused_k=u))(used))


# ---- jax.nn.dot_product_attention ------------------------------------------------------------------------------------


def lengths(*values):
    return np.array(values, np.int32)


def nn_cases():
    rng = np.random.default_rng(2)
    mask = rng.random((2, 1, 33, 49)) < 0.7
    mask[..., 0] = True  # no row is empty: there jax.nn means something else
    bias = rng.standard_normal((2, 4, 33, 49)).astype(np.float32)
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
        "window": {"local_window_size": (7, 3)},
        "one number": {"local_window_size": 5},
        "causal window": {"local_window_size": (7, 3), "is_causal": True},
        "mask": {"mask": mask},
        "mask, causal": {"mask": mask, "is_causal": True},
        "mask of rank 2": {"mask": mask[0, 0]},
        "bias": {"bias": bias},
        "bias of rank 3": {"bias": bias[0]},
        "bias, positional": bias[:1],
        "key lengths": {"key_value_seq_lengths": lengths(20, 49)},
        "key lengths, causal": {"key_value_seq_lengths": lengths(20, 49), "is_causal": True},
        "query lengths": {"query_seq_lengths": lengths(30, 7)},
        "both lengths": {"query_seq_lengths": lengths(30, 0), "key_value_seq_lengths": lengths(9, 49)},
    }


@beside_jax_nn
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("name", nn_cases())
def test_meaning_of_jax_nn(name, dtype):
    arrays, options = [jnp.asarray(x) for x in inputs(dtype)], nn_cases()[name]
    if not isinstance(options, dict):
        arrays, options = [*arrays, options], {}
    out, lse = jax.jit(lambda *x: foveal_jax.dot_product_attention(*x, return_residual=True, **options))(*arrays)
    plain, plain_lse = jax.nn.dot_product_attention(*arrays, return_residual=True, **options)
    assert out.shape == plain.shape and out.dtype == plain.dtype
    assert lse.shape == plain_lse.shape and lse.dtype == plain_lse.dtype
    with jax.enable_x64(True):
        exact, exact_lse = jax.nn.dot_product_attention(
            *(jnp.asarray(np.asarray(x), jnp.float64) for x in arrays), return_residual=True, **options
        )
    exact, out64, plain64 = (np.asarray(x).astype(np.float64) for x in (exact, out, plain))
    rounded = exact.astype(dtype).astype(np.float64)
    limit = oracle.MAX_FACTOR * np.abs(plain64 - exact).max() + np.abs(rounded - exact).max()
    assert np.abs(out64 - exact).max() <= limit
    assert ((out64 == 0).all(-1) == (plain64 == 0).all(-1)).all()
    has_keys = np.asarray(plain_lse).astype(np.float64) > -1e37
    with np.errstate(over="ignore"):  # jax.nn's number for a row without keys
        exact_lse = np.where(has_keys, np.asarray(exact_lse), 0).astype(dtype).astype(np.float64)
    step = np.abs(exact_lse) * float(jnp.finfo(dtype).eps)
    gap = np.abs(np.where(has_keys, np.asarray(lse).astype(np.float64) - exact_lse, 0))
    assert (gap <= oracle.LSE_TOLERANCE * (1 + np.abs(exact_lse)) + step)[has_keys].all()
    assert np.isneginf(np.asarray(lse).astype(np.float64)[~has_keys]).all()


@beside_jax_nn
def test_jax_nn_without_a_batch():
    q, k, v = (x[0] for x in inputs())
    out, lse = foveal_jax.dot_product_attention(q, k, v, is_causal=True, return_residual=True)
    expected, expected_lse = jax.nn.dot_product_attention(q, k, v, is_causal=True, return_residual=True)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_rows_without_keys_are_zero():
    q, k, v = inputs()
    mask = np.ones((1, 1, 33, 49), bool)
    mask[..., 3, :] = False
    out, lse = foveal_jax.dot_product_attention(q, k, v, mask=mask, return_residual=True)
    assert not out[:, 3].any() and np.isneginf(lse[:, 3]).all() and out[:, 4].all()


def test_jax_nn_refusals():
    q, k, v = inputs()
    for implementation in ("xla", "cudnn"):
        with pytest.raises(foveal.UnsupportedError, match=f"implementation is '{implementation}'"):
            foveal_jax.dot_product_attention(q, k, v, implementation=implementation)
    with pytest.raises(foveal.InvalidArgument, match="value.shape"):
        foveal_jax.dot_product_attention(q, k, v[..., :8])
    with pytest.raises(foveal.InvalidArgument, match="bias.dtype"):
        foveal_jax.dot_product_attention(q, k, v, bias=np.zeros((1, 1, 33, 49), np.float16))


@pytest.mark.parametrize("function", [foveal_jax.attention, foveal_jax.dot_product_attention])
def test_shared_masks_are_not_copied(function):
    q, k = np.ones((4, 32, 8, 16), np.float32), np.ones((4, 500, 8, 16), np.float32)

    def bytes_beside_the_results(mask, form=lambda mask: mask):
        call = jax.jit(lambda q, k, mask: function(q, k, k, mask=form(mask)))
        return call.lower(q, k, mask).compile().memory_analysis().temp_size_in_bytes

    for shape in ((4, 1, 1, 500), (1, 1, 32, 500), (500,), (32, 1)):
        assert bytes_beside_the_results(np.ones(shape, bool)) == 0
    whole = (4, 8, 32, 500)  # what the caller broadcasts, XLA writes out
    assert bytes_beside_the_results(np.ones((4, 1, 1, 500), bool), lambda x: jnp.broadcast_to(x, whole)) == 512000
