"""foveal.compat.flash_attn: FlashAttention-3's signatures and meanings."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
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


@pytest.mark.parametrize("name", ["qv", "q_descale", "k_descale", "v_descale", "num_splits", "sm_margin"])
def test_the_unsupported_raises_by_name(name):
    q, k, v = tensors("cpu")
    lengths = torch.tensor([0, 96], dtype=torch.int32)
    value = 4 if name in ("num_splits", "sm_margin") else torch.ones(2)
    with pytest.raises(foveal.UnsupportedError, match=f"^{name} is "):
        flash_attn.flash_attn_func(q, k, v, **{name: value})
    with pytest.raises(foveal.UnsupportedError, match=f"^{name} is "):
        packed = [x.flatten(0, 1) for x in (q, k, v)]
        flash_attn.flash_attn_varlen_func(*packed, lengths, lengths, 96, 96, **{name: value})


def test_compiles():
    q, k, v = tensors("cpu")
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn.flash_attn_func, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, causal=True), flash_attn.flash_attn_func(q, k, v, causal=True))


def test_signatures():
    interface = pytest.importorskip("fa3_fwd_interface", reason="SKIPPED: FlashAttention-3 (fa3-fwd) is not installed")
    for name in flash_attn.__all__:
        own = list(inspect.signature(getattr(flash_attn, name)).parameters)
        assert own == list(inspect.signature(getattr(interface, name)).parameters)
