"""Gradients of foveal.jax under JAX's transformations, beside JAX's own derivative of the formula."""

import inspect

import pytest

jax = pytest.importorskip("jax", reason="SKIPPED: no JAX")

import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

try:
    import foveal.jax as foveal_jax
except ImportError as error:
    pytest.skip(f"SKIPPED: {error}", allow_module_level=True)

cpu = jax.devices("cpu")[0]
OPTIONS = {"causal": True, "softcap": 4.0}


@pytest.fixture(autouse=True)
def on_cpu():
    with jax.default_device(cpu):
        yield


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def given(b=3):
    return drawn(b, 21, 4, 16), drawn(b, 21, 2, 16, seed=1), drawn(b, 21, 2, 16, seed=2), drawn(4, seed=3)


def formula(q, k, v, sinks):
    """[b, s_q, h_q, d_v] of OPTIONS."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    x = 4.0 * jnp.tanh(jnp.einsum("bihd,bjhd->bhij", q, k, precision="highest") * q.shape[-1] ** -0.5 / 4.0)
    x = jnp.where(jnp.tril(jnp.ones(x.shape[2:], bool)), x, -jnp.inf)
    rest = jnp.broadcast_to(sinks[None, :, None, None], (*x.shape[:3], 1))
    p = jax.nn.softmax(jnp.concatenate([x, rest], -1), -1)[..., :-1]
    return jnp.einsum("bhij,bjhd->bihd", p, v, precision="highest")


def ours(q, k, v, sinks):
    return foveal_jax.attention(q, k, v, sinks=sinks, **OPTIONS)


def loss_of(attention):
    return lambda *x: (attention(*x) * drawn(*x[0].shape, seed=7)).sum()


def assert_same(actual, expected):
    """The same numbers, but for the rounding of float32 sums of some hundred terms near 1."""
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)


def all_gradients(attention):
    return jax.grad(loss_of(attention), argnums=(0, 1, 2, 3))


def test_gradients_are_those_of_the_formula():
    expected = all_gradients(formula)(*given())
    assert_same(all_gradients(ours)(*given()), expected)
    compiled = jax.jit(all_gradients(ours))(*given())
    assert_same(compiled, expected)
    assert all(np.array_equal(*pair) for pair in zip(compiled, all_gradients(ours)(*given()), strict=True))
    value, _ = jax.jit(jax.value_and_grad(loss_of(ours)))(*given())
    np.testing.assert_allclose(value, loss_of(formula)(*given()), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_half_precision(dtype):
    low = [x.astype(dtype) for x in given()[:3]]
    expected = all_gradients(formula)(*(x.astype(np.float32) for x in low), given()[3])
    actual = jax.jit(all_gradients(ours))(*low, given()[3])
    for a, e in zip(actual[:3], expected[:3], strict=True):
        assert a.dtype == dtype
        error = np.linalg.norm(np.asarray(a, np.float32) - e)
        assert error <= 2 * float(ml_dtypes.finfo(dtype).eps) * np.linalg.norm(e)


@pytest.mark.parametrize("of_jit", [False, True])
def test_vmap(of_jit):
    q, k, v, sinks = (np.stack([x, 2 * x, x[::-1]]) for x in given(b=2))
    mapped = jax.vmap(all_gradients(ours))
    actual = (jax.jit(mapped) if of_jit else mapped)(q, k, v, sinks)
    for i in range(3):
        assert_same([x[i] for x in actual], all_gradients(formula)(q[i], k[i], v[i], sinks[i]))
    of_mapped = jax.grad(lambda q, k: jax.vmap(lambda q: loss_of(ours)(q, k, v[0], sinks[0]))(q).sum(), argnums=(0, 1))
    each = [all_gradients(formula)(q[i], k[0], v[0], sinks[0]) for i in range(3)]
    of_q, of_k = (jax.jit(of_mapped) if of_jit else of_mapped)(q, k[0])
    assert_same([of_q, of_k], [np.stack([x[0] for x in each]), sum(x[1] for x in each)])


def test_checkpoint_and_scan():
    q, k, v, sinks = given()

    def layers(attention, wrap=lambda f: f):
        step = wrap(lambda x, _: (x + attention(x, k, v, sinks), None))
        return lambda q: (jax.lax.scan(step, q, length=3)[0] ** 2).sum()

    expected = jax.grad(layers(formula))(q)
    plain = jax.jit(jax.grad(layers(ours)))(q)
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.array_equal(jax.jit(jax.grad(layers(ours, jax.checkpoint)))(q), plain)


def test_dot_product_attention():
    q, k, v, _ = given()
    bias = drawn(1, 4, 21, 21, seed=5)
    used = np.array([21, 9, 1], np.int32)

    def gradients(function, **options):
        loss = lambda *x: (function(*x, **options) * drawn(*q.shape, seed=7)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(q, k, v, bias)

    every = [{"is_causal": True}, {"key_value_seq_lengths": used}]
    if "return_residual" in inspect.signature(jax.nn.dot_product_attention).parameters:
        every.append({"local_window_size": (5, 2)})  # older ones leave it out without is_causal
    for options in every:
        expected = gradients(jax.nn.dot_product_attention, **options)
        assert_same(gradients(foveal_jax.dot_product_attention, **options), expected)


def test_training_is_the_formulas():
    def trained(attention):
        q, k, v, sinks = (jnp.asarray(x) for x in given())
        target, loss = drawn(*q.shape, seed=9), []

        @jax.jit
        def step(parameters):
            of = lambda parameters: ((attention(*parameters) - target) ** 2).mean()  # noqa: E731
            value, gradients = jax.value_and_grad(of)(parameters)
            return value, [x - 5.0 * g for x, g in zip(parameters, gradients, strict=True)]

        parameters = [q, k, v, sinks]
        for _ in range(20):
            value, parameters = step(parameters)
            loss.append(float(value))
        return loss

    mine = trained(ours)
    assert mine[-1] < 0.95 * mine[0] and mine == pytest.approx(trained(formula), rel=1e-4) and mine == trained(ours)
