"""Gradients through foveal.compat.flash_attn: a grid of shapes and options, in every form; what has none says so."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal  # noqa: E402
from foveal.compat import flash_attn  # noqa: E402
from gradient_oracle import assert_close, assert_forward_close, drawn, gradients_of  # noqa: E402

HEADS = {"mha": (4, 4), "mqa": (4, 1), "gqa": (6, 2)}
MASKS = {
    "full": {},
    "causal": {"causal": True},
    "local": {"window_size": (23, 11)},
    "causal local": {"causal": True, "window_size": (37, -1)},
}
SOFTCAPS = (0.0, 3.0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (40, 64, 80, 96, 128, 192, 256)
LENGTHS = (
    (1, 239),
    (113, 203),
    (131, 67),
    (64, 128),
    (97, 97),
    (108, 251),
    (3, 5),
    (203, 1),
    (127, 129),
    (190, 190),
    (66, 66),
)
FORMS = (
    "flash_attn_func",
    "varlen_func",
    "kvpacked_func",
    "varlen_kvpacked_func",
    "qkvpacked_func",
    "varlen_qkvpacked_func",
)


def grid():
    """Every mask beside every kind of heads, softcap and type; head dimensions, lengths and forms are dealt out."""
    every = itertools.product(DTYPES, HEADS, MASKS, SOFTCAPS)
    for i, (dtype, heads, mask, softcap) in enumerate(list(every) * 2):
        form = FORMS[(i + i // 72) % 6]
        lengths = LENGTHS[i % 11]
        if form.endswith("qkvpacked_func"):  # one length
            lengths = (lengths[0],) * 2
        yield pytest.param(dtype, heads, mask, softcap, HEAD_DIMS[i % 7], lengths, form)


def through(form, flash):
    """The function of that form, with its packing, as one of q, k and v: [b, s, h, d]."""
    function = getattr(flash_attn, form if form.startswith("flash") else f"flash_attn_{form}")

    def call(q, k, v):
        b, s_q, heads, _ = q.shape
        given = {"num_heads_q": heads} if "qkvpacked" in form else {}
        if "qkvpacked" in form:
            tensors = [torch.cat((q, k, v), 2)]
        else:
            tensors = [q, torch.stack((k, v), 2)] if "kvpacked" in form else [q, k, v]
        if "varlen" not in form:
            return function(*tensors, **given, **flash, return_attn_probs=True)
        lengths = [torch.arange(b + 1, dtype=torch.int32) * s for s in (s_q, k.shape[1])]
        lengths = lengths[:1] if "qkvpacked" in form else lengths
        out, lse = function(*(x.flatten(0, 1) for x in tensors), *lengths, **given, **flash, return_attn_probs=True)
        return out.unflatten(0, (b, s_q)), lse.unflatten(1, (b, s_q)).transpose(0, 1)

    return call


@pytest.mark.parametrize("dtype, heads, mask, softcap, d, lengths, form", grid())
def test_grid(dtype, heads, mask, softcap, d, lengths, form):
    flash = MASKS[mask] | {"softcap": softcap, "softmax_scale": 1.5 * d**-0.5}
    shapes = ((2, lengths[0], HEADS[heads][0], d), *[(2, lengths[1], HEADS[heads][1], d)] * 2)
    tensors = {name: drawn(*shape, seed=ord(name)).to(dtype).float() for name, shape in zip("qkv", shapes, strict=True)}
    function = through(form, flash)
    wants_lse = form == "flash_attn_func" or "varlen" in form
    got = gradients_of(function, tensors, dtype, wants_lse, {}, dtype)
    assert all(x.dtype == dtype for x in got.values())
    left, right = (None if side < 0 else side for side in flash.get("window_size", (-1, -1)))
    options = {
        "window": (left, right),
        "causal": flash.get("causal", False),
        "softcap": softcap,
        "scale": 1.5 * d**-0.5,
    }
    results = function(**{name: x.to(dtype) for name, x in tensors.items()})
    assert_forward_close(results, tensors, options)
    assert_close(got, tensors, wants_lse, options, dtype, results)


def test_packed_tensors_have_gradients_where_they_lie():
    qkv = drawn(2, 33, 3, 4, 48).requires_grad_()
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv.unbind(2))
    dout = drawn(2, 33, 4, 48, seed=7)
    flash_attn.flash_attn_qkvpacked_func(qkv, causal=True).backward(dout)
    flash_attn.flash_attn_func(q, k, v, causal=True).backward(dout)
    assert torch.equal(qkv.grad, torch.stack((q.grad, k.grad, v.grad), 2))


# ---- A cache ---------------------------------------------------------------------------------------------------------


def cache():
    """q, caches and new rows, and how many keys are there."""
    shapes = ((2, 3, 4, 32), (2, 20, 2, 32), (2, 20, 2, 32), (2, 3, 2, 32), (2, 3, 2, 32))
    return *(drawn(*shape, seed=i) for i, shape in enumerate(shapes)), torch.tensor([7, 11], dtype=torch.int32)


def test_a_cache_that_is_only_read_has_gradients():
    q, k_cache, v_cache, _, _, used = cache()
    results = []
    for call in (
        lambda *x: flash_attn.flash_attn_with_kvcache(*x, cache_seqlens=used, causal=True),
        lambda *x: foveal.attention(*x, seqused_k=used, causal=True),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k_cache, v_cache)]
        call(*leaves).square().sum().backward()
        results.append([x.grad for x in leaves])
    assert all(torch.equal(*pair) and pair[0].any() for pair in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["k", "v", "k_cache", "v_cache"])
def test_appending_has_no_gradient(name):
    q, k_cache, v_cache, k, v, used = cache()
    given = {"k_cache": k_cache, "v_cache": v_cache, "k": k, "v": v}
    given[name] = given[name].clone().requires_grad_()
    before = given["k_cache"].detach().clone()
    with pytest.raises(foveal.UnsupportedError, match=f"^{name} requires a gradient, which foveal has none of"):
        flash_attn.flash_attn_with_kvcache(q, **given, cache_seqlens=used)
    assert torch.equal(given["k_cache"], before)
    with torch.no_grad():
        flash_attn.flash_attn_with_kvcache(q, **given, cache_seqlens=used)


def test_what_else_of_a_cache_has_no_gradient():
    q, k_cache, v_cache, k, v, used = cache()
    q.requires_grad_()
    pages = {"page_table": torch.tensor([[0], [1]], dtype=torch.int32), "cache_seqlens": used}
    rows = {"cache_batch_idx": torch.tensor([1, 0], dtype=torch.int32), "cache_seqlens": used}
    for given in (pages, rows):
        with pytest.raises(foveal.UnsupportedError, match="there is no gradient of keys in pages"):
            flash_attn.flash_attn_with_kvcache(q, k_cache, v_cache, **given)
    turned = {"rotary_cos": torch.ones(32, 8), "rotary_sin": torch.zeros(32, 8), "cache_seqlens": used}
    with pytest.raises(foveal.UnsupportedError, match="^q requires a gradient, which foveal has none of"):
        flash_attn.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **turned)


def test_a_cache_that_changed_since_is_noticed():
    q, k_cache, v_cache, k, v, used = cache()
    out = flash_attn.flash_attn_with_kvcache(q.requires_grad_(), k_cache, v_cache, cache_seqlens=used)
    flash_attn.flash_attn_with_kvcache(q.detach(), k_cache, v_cache, k, v, cache_seqlens=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
