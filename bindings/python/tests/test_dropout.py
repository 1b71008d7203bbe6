"""Dropout (contract 1.16): foveal.dropout_mask(), NumPy, PyTorch with its generator, and the functions in place of
others'. On the CPU, but for what is marked gpu."""

import foveal
import numpy as np
import pytest

P, STATE = 0.3, (2**64 - 5, 2**40 + 1)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def expected_of(q, k, v, kept, p):
    """[b, s, h, d] in float64."""
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / q.shape[-1] ** 0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    rounded = round(p * 65536) / 65536
    return (weights * kept / (1 - rounded) @ v).transpose(0, 2, 1, 3)


Q, K, V = normal(2, 37, 4, 16), normal(2, 53, 2, 16), normal(2, 53, 2, 8, seed=1)
KEPT = foveal.dropout_mask(2, 4, 37, 53, P, STATE)


# ---- The mask --------------------------------------------------------------------------------------------------------


def test_the_mask():
    assert KEPT.shape == (2, 4, 37, 53) and KEPT.dtype == bool
    assert abs(KEPT.mean() - 0.7) < 5 * (0.21 / KEPT.size) ** 0.5
    assert np.array_equal(foveal.dropout_mask(1, 4, 5, 50, P, STATE)[0], KEPT[0, :, :5, :50])
    assert not np.array_equal(foveal.dropout_mask(2, 4, 37, 53, P, (1, 2)), KEPT)
    assert foveal.dropout_mask(2, 4, 37, 53, 0.0, STATE).all()
    assert foveal.dropout_mask(0, 4, 37, 53, P, STATE).shape == (0, 4, 37, 53)
    for state in (list(STATE), np.array(STATE, np.uint64), np.array(STATE, np.uint64).view(np.int64)):
        assert np.array_equal(foveal.dropout_mask(2, 4, 37, 53, P, state), KEPT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 1, 1, 1, 1.0, STATE), "dropout_p is 1; it must lie in"),
        ((1, 1, -1, 1, P, STATE), "s_q is -1"),
        ((1, 1, 1, 1, P, (1, 2, 3)), "must be two integers"),
        ((1, 1, 1, 1, P, (1, 2.5)), "must be two integers"),
        ((1, 1, 1, 1, P, None), "must be two integers"),
    ],
    ids=str,
)
def test_what_the_mask_refuses(arguments, message):
    with pytest.raises((foveal.InvalidArgument, TypeError), match=message):
        foveal.dropout_mask(*arguments)


# ---- NumPy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [STATE, list(STATE), np.array(STATE, np.uint64)], ids=["pair", "list", "array"])
def test_numpy(state):
    out, lse = foveal.attention(Q, K, V, dropout_p=P, dropout_state=state, return_lse=True)
    np.testing.assert_allclose(out, expected_of(Q, K, V, KEPT, P), atol=2e-5, rtol=1e-4)
    assert np.array_equal(lse, foveal.attention(Q, K, V, return_lse=True)[1])


def test_varlen_counts_rows_and_keys_in_their_sequence():
    ends_q, ends_k = (np.array([0, n, 2 * n], np.int32) for n in (37, 53))
    packed = [x.reshape(-1, *x.shape[2:]) for x in (Q, K, V)]
    out = foveal.attention_varlen(*packed, ends_q, ends_k, dropout_p=P, dropout_state=STATE)
    assert np.array_equal(out.reshape(2, 37, 4, 8), foveal.attention(Q, K, V, dropout_p=P, dropout_state=STATE))


def test_gradients_of_numpy():
    options = {"dropout_p": P, "dropout_state": STATE}
    out, lse = foveal.attention(Q, K, V, return_lse=True, **options)
    dout = normal(*out.shape, seed=2)
    got = foveal.attention_backward(dout, Q, K, V, out, lse, **options)
    moved, step = V.copy(), 2.0**-7
    moved[1, 7, 1, 3] += step
    change = (expected_of(Q, K, moved, KEPT, P) - expected_of(Q, K, V, KEPT, P)) * dout
    np.testing.assert_allclose(got.dv[1, 7, 1, 3], change.sum() / step, rtol=1e-3, atol=1e-4)
    with pytest.raises(foveal.InvalidArgument, match="dropout_state is None"):
        foveal.attention_backward(dout, Q, K, V, out, lse, dropout_p=P)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dropout_p": 0.1}, "dropout_state is None and dropout_p is 0.1"),
        ({"dropout_state": STATE}, "dropout_state is present and dropout_p is 0"),
        ({"dropout_p": 1.0, "dropout_state": STATE}, "dropout_p is 1"),
        ({"dropout_p": -0.1, "dropout_state": STATE}, "dropout_p is -0.1"),
        ({"dropout_p": float("nan"), "dropout_state": STATE}, "dropout_p is nan"),
        ({"dropout_p": "0.1", "dropout_state": STATE}, "dropout_p is '0.1'; it must be a number"),
        ({"dropout_p": 0.1, "dropout_state": (1, 2, 3)}, "it must be two integers"),
        ({"dropout_p": 0.1, "dropout_state": np.array([1, 2, 3])}, r"of shape \[2\]"),
        ({"dropout_p": 0.1, "dropout_state": np.array([1, 2], np.int32)}, "dropout_state.dtype is int32"),
        ({"dropout_p": 0.1, "dropout_state": 7}, "dropout_state is of type int"),
    ],
    ids=str,
)
def test_what_is_refused(options, message):
    with pytest.raises((foveal.Error, TypeError), match=message):
        foveal.attention(Q, K, V, **options)


def test_supports_and_plan():
    assert foveal.supports(Q, K, V, dropout_p=P, dropout_state=STATE)
    assert "dropout 0.3" in foveal.plan(Q, K, V, dropout_p=P).text
    x = ((1, 64, 4, 64), "bfloat16")
    assert foveal.supports(x, x, x, dropout_p=P, backend="sm90")
    x = ((1, 64, 4, 64), "float8_e4m3fn")
    refused = foveal.supports(x, x, x, dropout_p=P, backend="sm90")
    assert not refused and refused.reason.startswith("dropout_p is 0.3")


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="SKIPPED: no PyTorch")


def leaves(torch, *, heads=4):
    return [torch.from_numpy(x.copy()).requires_grad_() for x in (Q, K, V)]


def gradients(torch, out, inputs):
    weights = torch.from_numpy(normal(*out.shape, seed=3))
    return torch.autograd.grad((out * weights).sum(), inputs)


def eager(torch, q, k, v, kept, p):
    """The textbook, in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    kept = torch.from_numpy(kept) / (1 - round(p * 65536) / 65536)
    return (weights * kept @ v).transpose(1, 2)


def test_torch_and_its_gradients(torch):
    inputs = leaves(torch)
    for state in (STATE, torch.tensor([-5, 2**40 + 1])):
        out = foveal.attention(*inputs, dropout_p=P, dropout_state=state)
        expected = eager(torch, *inputs, KEPT, P)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
        for got, wanted in zip(gradients(torch, out, inputs), gradients(torch, expected, inputs), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_torch_on_a_gpu(torch):
    inputs = [torch.from_numpy(x).to("cuda", torch.bfloat16).requires_grad_() for x in (Q, K, V)]
    with pytest.raises(foveal.InvalidArgument, match="must be a tensor there"):
        foveal.attention(*inputs, dropout_p=P, dropout_state=STATE)
    state = torch.tensor([-5, 2**40 + 1], device="cuda")
    out = foveal.attention(*inputs, dropout_p=P, dropout_state=state)
    on_cpu = [x.detach().cpu().requires_grad_() for x in inputs]
    expected = foveal.attention(*on_cpu, dropout_p=P, dropout_state=STATE)
    torch.testing.assert_close(out.cpu(), expected, atol=2e-2, rtol=2e-2)
    weights = torch.from_numpy(normal(*out.shape, seed=3)).bfloat16()
    got = torch.autograd.grad(out, inputs, weights.cuda())
    for mine, cpus in zip(got, torch.autograd.grad(expected, on_cpu, weights), strict=True):
        torch.testing.assert_close(mine.cpu(), cpus, atol=5e-2, rtol=5e-2)
    torch.manual_seed(1)
    drawn = foveal.attention(*inputs, dropout_p=P)
    torch.manual_seed(1)
    assert torch.equal(foveal.attention(*inputs, dropout_p=P), drawn)


# A graph draws a new mask each time that it is replayed: PyTorch's generator knows that it is captured.
@pytest.mark.gpu
def test_a_graph_of_pytorch_draws_anew(torch):
    inputs = [torch.from_numpy(x).to("cuda", torch.bfloat16) for x in (Q, K, V)]
    foveal.attention(*inputs, dropout_p=P)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = foveal.attention(*inputs, dropout_p=P)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


def test_the_generator_decides(torch):
    inputs = [x.detach() for x in leaves(torch)]

    def out(seed, **options):
        torch.manual_seed(seed)
        return foveal.attention(*inputs, dropout_p=P, **options)

    assert torch.equal(out(1), out(1)) and not torch.equal(out(1), out(2))
    torch.manual_seed(1)
    state = foveal.torch._drawn_dropout_state(inputs[0])
    assert state.shape == (2,) and torch.equal(out(1), out(7, dropout_state=state))
    kept = foveal.dropout_mask(2, 4, 37, 53, P, state)
    torch.testing.assert_close(out(1).double(), eager(torch, *inputs, kept, P), atol=2e-5, rtol=1e-4)
    torch.manual_seed(1)
    with_gradient = foveal.attention(*leaves(torch), dropout_p=P)
    assert torch.equal(with_gradient, out(1))
    before = torch.get_rng_state()
    foveal.attention(*inputs)  # without dropout nothing is drawn
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_drops_the_same_weights(torch, reentrant):
    from torch.utils.checkpoint import checkpoint

    inputs = leaves(torch)

    def call(q, k, v):
        return foveal.attention(q, k, v, dropout_p=P)

    torch.manual_seed(3)
    plain = gradients(torch, call(*inputs), inputs)
    torch.manual_seed(3)
    out = checkpoint(call, *inputs, use_reentrant=reentrant)
    weights = torch.from_numpy(normal(*out.shape, seed=3))
    (out * weights).sum().backward()
    assert all(torch.equal(x.grad, gradient) for x, gradient in zip(inputs, plain, strict=True))


@pytest.mark.parametrize("given", [True, False], ids=["given", "drawn"])
@pytest.mark.parametrize("function", ["foveal.attention", "foveal.torch.attention"])
def test_compiled(torch, given, function):
    import foveal.torch

    torch._dynamo.reset()
    inputs = leaves(torch)
    attention = foveal.attention if function == "foveal.attention" else foveal.torch.attention
    options = {"dropout_p": P} | ({"dropout_state": torch.tensor([7, 8])} if given else {})
    compiled = torch.compile(lambda *x: attention(*x, **options), fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, lambda *x: attention(*x, **options), compiled):
        torch.manual_seed(5)
        out = call(*inputs)
        results.append((out.detach(), *gradients(torch, out, inputs)))
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], result, strict=True))
    if not given:
        assert not torch.equal(compiled(*inputs), results[0][0])  # another state


def test_compiled_varlen(torch):
    import foveal.torch

    torch._dynamo.reset()
    inputs = [x.detach().flatten(0, 1) for x in leaves(torch)]
    ends = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (37, 53)]

    def call(*x):
        return foveal.torch.attention_varlen(*x, *ends, dropout_p=P, dropout_state=STATE)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), call(*inputs))


def test_the_operator_draws_nothing(torch):
    import foveal.torch

    inputs = [x.detach() for x in leaves(torch)]
    with pytest.raises(foveal.InvalidArgument, match="dropout_state is NULL and dropout_p is 0.3"):
        torch.ops.foveal.attention(*inputs, dropout_p=P)
    state = torch.tensor([-5, 2**40 + 1])
    expected = foveal.attention(*inputs, dropout_p=P, dropout_state=STATE)
    assert torch.equal(torch.ops.foveal.attention(*inputs, dropout_p=P, dropout_state=state), expected)


def test_a_backward_pass_of_ones_own_needs_the_state(torch):
    import foveal.torch  # noqa: F401

    inputs = [x.detach() for x in leaves(torch)]
    out, lse = foveal.attention(*inputs, dropout_p=P, dropout_state=STATE, return_lse=True)
    dout = torch.ones_like(out)
    plain = foveal.attention_backward(dout, *inputs, out, lse, dropout_p=P, dropout_state=STATE)

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Watched():
        watched = foveal.attention_backward(dout, *inputs, out, lse, dropout_p=P, dropout_state=STATE)
        with pytest.raises(foveal.InvalidArgument, match="dropout_state is None"):
            foveal.attention_backward(dout, *inputs, out, lse, dropout_p=P)
    assert torch.equal(plain.dv, watched.dv) and torch.equal(plain.dq, watched.dq)
    with pytest.raises(foveal.InvalidArgument, match="dropout_state is None"):
        foveal.attention_backward(dout, *inputs, out, lse, dropout_p=P)


# ---- In place of others ----------------------------------------------------------------------------------------------


def test_flash_attention(torch):
    from foveal.compat import flash_attn

    q, k, v = (x.detach() for x in leaves(torch))
    torch.manual_seed(4)
    expected = foveal.attention(q, k, v, dropout_p=P, causal=True)
    torch.manual_seed(4)
    assert torch.equal(flash_attn.flash_attn_func(q, k, v, dropout_p=P, causal=True), expected)
    ends = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (37, 53)]
    torch.manual_seed(4)
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    out = flash_attn.flash_attn_varlen_func(*packed, *ends, 37, 53, dropout_p=P, causal=True)
    assert torch.equal(out.view_as(expected), expected)
    with pytest.raises(foveal.UnsupportedError, match="return_attn_probs is True and dropout_p is 0.3"):
        flash_attn.flash_attn_func(q, k, v, dropout_p=P, return_attn_probs=True)


def test_sdpa(torch):
    from foveal.compat import torch as compat

    q, k, v = (x.detach() for x in leaves(torch))
    torch.manual_seed(4)
    expected = foveal.attention(q, k, v, dropout_p=P, align="top_left", causal=True)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    torch.manual_seed(4)
    out = compat.sdpa(*heads_first, dropout_p=P, is_causal=True, enable_gqa=True)
    assert torch.equal(out.transpose(1, 2), expected)
    with compat.sdpa_replaced(strict=True):
        torch.manual_seed(4)
        replaced = torch.nn.functional.scaled_dot_product_attention(
            *heads_first, dropout_p=P, is_causal=True, enable_gqa=True
        )
    assert torch.equal(replaced, out)


def test_a_layer_of_transformers_drops_weights_when_it_trains(torch):
    transformers = pytest.importorskip("transformers", reason="SKIPPED: no transformers")
    import foveal.compat.transformers as compat

    compat.register()
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_dropout=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="foveal")
    ids = torch.arange(24).view(2, 12) % 32

    def loss_and_gradient(seed):
        torch.manual_seed(seed)
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.item(), model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    model.eval()
    assert loss_and_gradient(1)[0] == loss_and_gradient(2)[0]
    model.train()
    (first, gradient), (again, gradient_again) = loss_and_gradient(1), loss_and_gradient(1)
    assert first == again and torch.equal(gradient, gradient_again)
    assert first != loss_and_gradient(2)[0]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed, gradient_checkpointed = loss_and_gradient(1)
    assert first == checkpointed and torch.equal(gradient, gradient_checkpointed)
