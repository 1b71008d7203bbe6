"""Dropout of foveal.jax (contract 1.16): the weights that foveal.dropout_mask() names, out and gradients in float64."""

import pytest

jax = pytest.importorskip("jax", reason="SKIPPED: no JAX")

import foveal  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
from test_attention import inputs  # noqa: E402

try:
    import foveal.jax as foveal_jax
except ImportError as error:
    pytest.skip(f"SKIPPED: {error}", allow_module_level=True)

P = 0.3
KEY = jax.random.key(7)
cpu = jax.devices("cpu")[0]


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(cpu):
        yield


def dropping(q, k, v, key=KEY, p=P, **options):
    return foveal_jax.attention(q, k, v, dropout_p=p, dropout_key=key, causal=True, **options)


def kept_of(q, k, key=KEY, p=P):
    """bool [b, h_q, s_q, s_k]"""
    b, s_q, h_q, _ = q.shape
    return foveal.dropout_mask(b, h_q, s_q, k.shape[1], p, foveal_jax.dropout_state(key))


def exact(q, k, v, dout, kept, p=P):
    """out, dq, dk and dv of attention with bottom-right causality whose weights `kept` are divided by 1 - p."""
    group = q.shape[2] // k.shape[2]
    q, k, v, dout = (np.asarray(x).astype(np.float64).transpose(0, 2, 1, 3) for x in (q, k, v, dout))
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    s_q, s_k, scale = q.shape[2], k.shape[2], q.shape[-1] ** -0.5
    scores = np.where(np.tril(np.ones((s_q, s_k), bool), s_k - s_q), q @ k.transpose(0, 1, 3, 2) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    factors = kept / (1 - round(p * 65536) / 65536)
    dweights = dout @ v.transpose(0, 1, 3, 2) * factors
    dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) * scale
    of_head = [dscores.transpose(0, 1, 3, 2) @ q, (weights * factors).transpose(0, 1, 3, 2) @ dout]
    dk, dv = (x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2) for x in of_head)
    return [x.transpose(0, 2, 1, 3) for x in ((weights * factors) @ v, dscores @ k, dk, dv)]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def gradients(q, k, v, key=KEY, call=dropping):
    """out, dq, dk, dv of dout, the same one of every shape."""
    out, of = jax.vjp(lambda *x: call(*x, key), q, k, v)
    return [out, *of(normal(*out.shape, seed=5).astype(out.dtype))]


def assert_equal(actual, expected):
    assert all(np.array_equal(a, e) for a, e in zip(actual, expected, strict=True))


# ---- Which weights ---------------------------------------------------------------------------------------------------


def test_which_weights_are_dropped():
    """Uniform weights beside V = 1 show them: out is the part of the row that is kept."""
    q, k = np.zeros((2, 33, 4, 16), np.float32), np.zeros((2, 49, 2, 16), np.float32)
    v = np.tile(np.eye(49, dtype=np.float32)[None, :, None], (2, 1, 2, 1))  # out [.., j] is the weight of key j
    out = foveal_jax.attention(q, k, v, dropout_p=P, dropout_key=KEY)
    assert np.array_equal(np.asarray(out).transpose(0, 2, 1, 3) != 0, kept_of(q, k))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda x: np.dtype(x).name)
def test_out_and_gradients(dtype):
    q, k, v = inputs(dtype)
    for call in (gradients, jax.jit(gradients)):
        actual = call(q, k, v)
        dout = normal(*actual[0].shape, seed=5).astype(dtype)
        for a, e in zip(actual, exact(q, k, v, dout, kept_of(q, k)), strict=True):
            error = np.linalg.norm(np.asarray(a).astype(np.float64) - e)
            assert a.dtype == dtype and error <= 2 * float(ml_dtypes.finfo(dtype).eps) * np.linalg.norm(e)


def test_the_bits_are_those_of_foveal_attention():
    q, k, v = inputs()
    options = {"softcap": 5.0, "sinks": normal(q.shape[2], seed=4), "seqused_k": np.array([20, 49], np.int32)}
    out, lse = jax.jit(lambda *x: dropping(*x, return_lse=True, **options))(q, k, v)
    options |= {"dropout_p": P, "dropout_state": foveal_jax.dropout_state(KEY), "causal": True}
    assert_equal((out, lse), foveal.attention(q, k, v, return_lse=True, **options))


# ---- Keys ------------------------------------------------------------------------------------------------------------


def test_keys():
    q, k, v = inputs()
    first = gradients(q, k, v)
    assert_equal(jax.jit(gradients)(q, k, v, KEY), first)  # a key that is traced
    assert_equal(gradients(q, k, v, jax.random.PRNGKey(7)), first)  # a key of the older kind
    others = [KEY, *jax.random.split(KEY), jax.random.fold_in(KEY, 100)]
    states = [foveal_jax.dropout_state(key) for key in others]
    assert len(set(states)) == 4 and all(0 <= number < 2**64 for state in states for number in state)
    assert len({np.asarray(dropping(q, k, v, key)).tobytes() for key in others}) == 4
    assert not np.array_equal(kept_of(q, k, others[1]), kept_of(q, k, others[2]))


def test_without_dropout():
    q, k, v = inputs()
    plain = gradients(q, k, v, call=lambda q, k, v, _: foveal_jax.attention(q, k, v, causal=True))
    for p in (0, 0.0, 1e-50, 2.0**-18):  # the last ones drop nothing (contract, 1.16)
        assert_equal(gradients(q, k, v, call=lambda *x, p=p: dropping(*x, p=p)), plain)
    assert_equal(gradients(q, k, v, None, call=lambda *x: dropping(*x, p=0.0)), plain)


# ---- Transformations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_jit", [False, True])
def test_vmap_is_a_loop(of_jit):
    q, k, v = (np.stack([x, x[::-1], 2 * x]) for x in inputs())
    keys = jax.random.split(KEY, 3)

    def mapped(in_axes):
        call = jax.vmap(gradients, in_axes=in_axes)
        return jax.jit(call) if of_jit else call

    of_keys, shared, of_keys_alone = (mapped(axes) for axes in ((0, 0, 0, 0), (0, 0, 0, None), (None, None, None, 0)))
    each = [gradients(q[i], k[i], v[i], keys[i]) for i in range(3)]
    assert_equal(of_keys(q, k, v, keys), [np.stack(x) for x in zip(*each, strict=True)])
    each = [gradients(q[i], k[i], v[i], KEY) for i in range(3)]
    assert_equal(shared(q, k, v, KEY), [np.stack(x) for x in zip(*each, strict=True)])
    each = [gradients(q[0], k[0], v[0], keys[i]) for i in range(3)]
    assert_equal(of_keys_alone(q[0], k[0], v[0], keys), [np.stack(x) for x in zip(*each, strict=True)])


def test_checkpoint_and_scan():
    """A key a layer: of three layers in a scan, recomputed or not, and one after the other."""
    q, k, v = inputs()
    v = normal(*k.shape, seed=6)
    keys = jax.random.split(KEY, 3)

    def scanned(wrap):
        step = wrap(lambda x, key: (x + dropping(x, k, v, key), None))
        return lambda q: (jax.lax.scan(step, q, keys)[0] ** 2).sum()

    def unrolled(q):
        for key in keys:
            q = q + dropping(q, k, v, key)
        return (q**2).sum()

    plain = jax.jit(jax.grad(scanned(lambda step: step)))(q)
    assert np.array_equal(jax.jit(jax.grad(scanned(jax.checkpoint)))(q), plain)
    np.testing.assert_allclose(jax.grad(unrolled)(q), plain, rtol=1e-5, atol=1e-5)


def test_lowered_for_cuda():
    q, k, v = (jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16) for _ in range(3))
    lowered = jax.jit(dropping).trace(q, k, v).lower(lowering_platforms=("cuda",))
    call = next(line for line in lowered.as_text().splitlines() if "@foveal_attention" in line)
    assert 'given = "q k v dropout_state"' in call and "dropout_p = 3.0" in call and "tensor<4xui32>" in call


@pytest.mark.gpu
def test_the_gpu_refuses():
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"SKIPPED: JAX sees no GPU: {error}")
    arrays = [jax.device_put(x, device) for x in inputs(ml_dtypes.bfloat16, d=64)]
    with pytest.raises(Exception, match="dropout_p is 0.3"):
        jax.block_until_ready(jax.jit(dropping)(*arrays))


# ---- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan"), 1 - 1e-12], ids=str)
@pytest.mark.parametrize("key", [KEY, None], ids=["key", "none"])
def test_numbers_that_are_no_probability(p, key):
    with pytest.raises(foveal.InvalidArgument, match="dropout_p is"):
        jax.jit(lambda *x: dropping(*x, key=key, p=p))(*inputs())


def test_refusals_name_the_argument():
    arrays = inputs()
    with pytest.raises(foveal.InvalidArgument, match="dropout_key is None and dropout_p is 0.3"):
        dropping(*arrays, key=None)
    for key in (7, np.float32(1), jax.random.split(KEY), np.zeros(3, np.uint32), foveal_jax.dropout_state(KEY)):
        with pytest.raises(TypeError, match="dropout_key must be one key of jax.random"):
            dropping(*arrays, key=key)
    with pytest.raises(TypeError, match="dropout_p is traced"):
        jax.jit(lambda p: dropping(*arrays, p=p))(0.5)
    with pytest.raises(TypeError, match="dropout_p is '0.1'; it must be a number"):
        dropping(*arrays, p="0.1")
