"""foveal.compat.flash_attn: the names and meanings of FlashAttention-2 and FlashAttention-3."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
import numpy as np  # noqa: E402
import oracle  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402


def tensors(device, rows=48):
    torch.manual_seed(0)
    return [torch.randn(2, rows, heads, 64, device=device, dtype=torch.bfloat16) for heads in (4, 2, 2)]


@pytest.mark.parametrize(
    "flash, own",
    [
        ({}, {}),
        ({"causal": True}, {"causal": True}),
        ({"softmax_scale": 0.2}, {"scale": 0.2}),
        ({"window_size": (7, 2)}, {"window": (7, 2)}),
        ({"window_size": (7, 5), "causal": True}, {"window": (7, 0)}),
        ({"window_size": (-1, 3)}, {"window": (None, 3)}),
        ({"softcap": 4.0, "causal": True}, {"softcap": 4.0, "causal": True}),
        ({"attention_chunk": 16, "causal": True}, {"chunk": 16, "causal": True}),
        ({"pack_gqa": True, "deterministic": True, "num_splits": 0}, {}),
        ({"dropout_p": 0.0, "window_size": None}, {}),
        ({"window_size": (None, 3)}, {"window": (None, 3)}),
        ({"window_size": [5, None], "causal": True}, {"window": (5, 0)}),
    ],
    ids=str,
)
def test_arguments_mean_the_same(flash, own, device, require):
    q, k, v = tensors(device)
    require(foveal.supports(q, k, v, return_lse=True, **own), device)
    expected, expected_lse = foveal.attention(q, k, v, return_lse=True, **own)
    assert torch.equal(flash_attn.flash_attn_func(q, k, v, **flash), expected)
    out, lse = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **flash)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)

    lengths = torch.tensor([0, 48, 96], dtype=torch.int32, device=device)
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    out, lse = flash_attn.flash_attn_varlen_func(*packed, lengths, lengths, 48, 48, return_attn_probs=True, **flash)
    assert torch.equal(out.view_as(expected), expected)
    assert torch.equal(lse.view(4, 2, 48).transpose(0, 1), expected_lse)


def test_used_lengths(device):
    q, k, v = (x.flatten(0, 1) for x in tensors(device))
    lengths, used = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 48, 96], [20, 48]))
    out = flash_attn.flash_attn_varlen_func(q, k, v, lengths, lengths, 48, 48, seqused_k=used)
    assert torch.equal(out[:48], foveal.attention(q[None, :48], k[None, :20], v[None, :20])[0])


UNSUPPORTED = {
    "qv": torch.ones(2),
    "num_splits": 4,
    "sm_margin": 4,
}


def forms(q, k, v):
    """The tensors and lengths that each function takes, from q, k and v of one shape."""
    b, s = q.shape[:2]
    lengths = torch.arange(b + 1, dtype=torch.int32, device=q.device) * s
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    kv, flat_kv = torch.stack((k, v), 2), torch.stack(flat[1:], 1)
    return {
        "flash_attn_func": (q, k, v),
        "flash_attn_kvpacked_func": (q, kv),
        "flash_attn_qkvpacked_func": (torch.stack((q, k, v), 2),),
        "flash_attn_varlen_func": (*flat, lengths, lengths, s, s),
        "flash_attn_varlen_kvpacked_func": (flat[0], flat_kv, lengths, lengths, s, s),
        "flash_attn_varlen_qkvpacked_func": (torch.stack(flat, 1), lengths, s),
    }


def one_shape(device="cpu", dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(2, 40, 4, 64, device=device, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_the_unsupported_raises_by_name(name):
    for function, arguments in forms(*one_shape()).items():
        with pytest.raises(foveal.UnsupportedError, match=f"^{name} is "):
            getattr(flash_attn, function)(*arguments, **{name: UNSUPPORTED[name]})
        if "varlen" in function:  # k is no pages
            with pytest.raises(foveal.InvalidArgument, match="^k.rank is 3; pages .block_table is present. needs 4"):
                getattr(flash_attn, function)(*arguments, block_table=torch.zeros(2, 1, dtype=torch.int32))


@pytest.mark.parametrize("positional", [(0.0,), (0.0, 0.25), (None, 0.25), (None,), (0.0, None, True)], ids=str)
def test_positions_that_the_two_conventions_disagree_on_are_refused(positional):
    for function, arguments in forms(*one_shape()).items():
        with pytest.raises(TypeError, match="FlashAttention-2 means dropout_p.*FlashAttention-3.*by keyword"):
            getattr(flash_attn, function)(*arguments, *positional)


WRONG = {
    "window_size is 3": {"window_size": 3},
    "window_size is \\(1.5, 0\\)": {"window_size": (1.5, 0)},
    "window_size is \\(True, 0\\)": {"window_size": (True, 0)},
    "window_size is \\(1,\\)": {"window_size": (1,)},
    "causal is 0.25": {"causal": 0.25},
    "return_attn_probs is 1": {"return_attn_probs": 1},
    "softcap is None": {"softcap": None},
    "alibi_slopes.dtype is f16|alibi_slopes": {"alibi_slopes": torch.ones(4, dtype=torch.float16)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_refused_by_name(message):
    for function, arguments in forms(*one_shape()).items():
        with pytest.raises((TypeError, foveal.Error), match=f"^({message})"):
            getattr(flash_attn, function)(*arguments, **WRONG[message])


FLOAT64 = {
    "plain": ({}, {}),
    "alibi": ({"alibi_slopes": [0.5, 0.25, 0.125, 0.0625], "causal": True}, {"causal": True}),
    "alibi of each sequence": ({"alibi_slopes": [[0.5, 0.1, 0.2, 0.3], [0.0, 1.0, 2.0, 0.7]]}, {}),
    "window": ({"window_size": (7, 2), "softmax_scale": 0.2}, {"window": (7, 2), "scale": 0.2}),
    "no window": ({"window_size": None, "dropout_p": 0.0, "softcap": 3.0}, {"softcap": 3.0}),
    "causal": ({"causal": True, "window_size": (5, 9)}, {"causal": True, "window": (5, 0)}),
}


@pytest.mark.parametrize("name", FLOAT64)
def test_every_form_against_float64(name, device, require):
    flash, own = (dict(x) for x in FLOAT64[name])
    dtype = torch.float32 if device == "cpu" else torch.float16
    q, k, v = one_shape(device, dtype)
    if "alibi_slopes" in flash:
        own["alibi_slopes"] = np.array(flash["alibi_slopes"], np.float32)
        flash["alibi_slopes"] = torch.tensor(flash["alibi_slopes"], device=device)
    arrays = [x.cpu().numpy() for x in (q, k, v)]
    for function, arguments in forms(q, k, v).items():
        out, lse = getattr(flash_attn, function)(*arguments, return_attn_probs=True, **flash)
        if "varlen" in function:
            out, lse = out.view_as(q), lse.view(4, 2, 40).transpose(0, 1)
        oracle.assert_close(out.cpu(), *arrays, arrays[0].dtype.type, lse=lse.cpu(), **own)


def test_grouped_heads_in_one_tensor(device, require):
    q, k, v = tensors(device)
    expected = foveal.attention(q, k, v, causal=True)
    qkv, lengths = torch.cat((q, k, v), 2), torch.tensor([0, 48, 96], dtype=torch.int32, device=device)
    assert torch.equal(flash_attn.flash_attn_qkvpacked_func(qkv, num_heads_q=4, causal=True), expected)
    flat = flash_attn.flash_attn_varlen_qkvpacked_func(qkv.flatten(0, 1), lengths, 48, num_heads_q=4, causal=True)
    assert torch.equal(flat.view_as(expected), expected)
    for wrong in (qkv, qkv[:, :, None], torch.stack((q, q), 2)):
        with pytest.raises(foveal.InvalidArgument, match="^qkv has shape"):
            flash_attn.flash_attn_qkvpacked_func(wrong)
    with pytest.raises(foveal.InvalidArgument, match="^qkv has shape .* num_heads_q 5"):
        flash_attn.flash_attn_qkvpacked_func(qkv, num_heads_q=5)
    with pytest.raises(foveal.InvalidArgument, match="^kv has shape"):
        flash_attn.flash_attn_kvpacked_func(q, k)


def test_compiles():
    q, k, v = tensors("cpu")
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn.flash_attn_func, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, causal=True), flash_attn.flash_attn_func(q, k, v, causal=True))


def test_signatures():
    interface = pytest.importorskip("fa3_fwd_interface", reason="SKIPPED: FlashAttention-3 (fa3-fwd) is not installed")
    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        own = inspect.signature(getattr(flash_attn, name)).parameters
        assert set(inspect.signature(getattr(interface, name)).parameters) <= set(own)
