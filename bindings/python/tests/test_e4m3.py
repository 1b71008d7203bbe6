"""float8_e4m3fn, as it is asked for in Python: results are compared, bit for bit, with those of dequantised tensors."""

import foveal
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

E4M3 = torch.float8_e4m3fn
B, S_Q, S_K, H_Q, H_K, D = 2, 5, 70, 4, 2, 32


def tensors(dtype=torch.bfloat16, s_q=S_Q):
    """q in dtype; k and v in e4m3 with their descales."""
    torch.manual_seed(0)
    q = torch.randn(B, s_q, H_Q, D).to(dtype)
    k, v = (torch.randn(B, S_K, H_K, D).mul(20).clamp(-448, 448).to(E4M3) for _ in range(2))
    k_descale, v_descale = torch.rand(2, B, H_K) / 20 + 0.01
    return q, k, v, {"k_descale": k_descale, "v_descale": v_descale}


def dequantised(x, descale, dtype):
    return (x.float() * descale[:, None, :, None]).to(dtype)


def of_cache(q, k, v, descales, **options):
    """What attention over the cache must be."""
    k, v = dequantised(k, descales["k_descale"], q.dtype), dequantised(v, descales["v_descale"], q.dtype)
    return foveal.attention(q, k, v, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("s_q", [1, 70])
def test_a_cache_is_as_the_dequantised_cache(dtype, s_q):
    q, k, v, descales = tensors(dtype, s_q)
    options = {"causal": True, "softcap": 20.0, "return_lse": True}
    for got, expected in zip(
        foveal.attention(q, k, v, **descales, **options), of_cache(q, k, v, descales, **options), strict=True
    ):
        assert torch.equal(got, expected)


def test_all_in_e4m3_is_bfloat16_unless_out_says_float16():
    q, k, v, descales = tensors()
    q = q.to(E4M3)
    descales["q_descale"] = torch.rand(B, H_K) + 0.5
    q_f32 = dequantised(q, descales["q_descale"].repeat_interleave(H_Q // H_K, 1), torch.float32)
    expected = of_cache(q_f32, k, v, descales)
    out = foveal.attention(q, k, v, **descales)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.to(torch.bfloat16))
    out = torch.empty(q.shape, dtype=torch.float16)
    assert foveal.attention(q, k, v, **descales, out=out) is out
    assert torch.equal(out, expected.to(torch.float16))
    assert torch.equal(foveal.attention(q, k, v, **descales, out=torch.empty(q.shape)), expected)
    with pytest.raises(foveal.InvalidArgument, match="out.dtype is i32; q's, e4m3, needs bf16, f16 or f32"):
        foveal.attention(q, k, v, out=torch.empty(q.shape, dtype=torch.int32))


def test_one_descale_stands_for_all():
    q, k, v, _ = tensors()
    one = torch.full((1, 1), 0.03)
    shared = {"k_descale": one.expand(B, H_K), "v_descale": one.expand(B, H_K)}
    each = {name: x.contiguous() for name, x in shared.items()}
    assert torch.equal(foveal.attention(q, k, v, **shared), foveal.attention(q, k, v, **each))


def test_varlen_and_pages():
    q, k, v, descales = tensors(s_q=3)
    used = torch.tensor([70, 33], dtype=torch.int32)
    expected = of_cache(q, k, v, descales, seqused_k=used, causal=True)
    ends = torch.tensor([0, 3, 6], dtype=torch.int32)
    options = {**descales, "seqused_k": used, "causal": True}
    assert torch.equal(
        foveal.attention_varlen(q.flatten(0, 1), k, v, ends, None, **options).view_as(expected), expected
    )
    table = torch.tensor([[6, 1, 3, 0, 5, 2, 4], [13, 8, 10, 7, 12, 9, 11]], dtype=torch.int32)
    pages = [torch.empty(14, 10, H_K, D, dtype=torch.uint8) for _ in range(2)]
    for page, x in zip(pages, (k, v), strict=True):
        page[table.flatten().long()] = x.view(torch.uint8).view(14, 10, H_K, D)
    pages = [page.view(E4M3) for page in pages]
    assert torch.equal(foveal.attention(q, *pages, block_table=table, **options), expected)


# ---- other libraries, and bytes


def test_numpy_and_ml_dtypes():
    q, k, v, descales = tensors()
    expected = foveal.attention(q, k, v, **descales)
    as_numpy = [x.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn) for x in (k, v)]
    factors = {name: x.numpy() for name, x in descales.items()}
    out = foveal.attention(q.view(torch.int16).numpy().view(ml_dtypes.bfloat16), *as_numpy, **factors)
    assert out.dtype == ml_dtypes.bfloat16
    assert np.array_equal(out.view(np.int16), expected.view(torch.int16).numpy())
    q8 = q.to(E4M3)
    out = foveal.attention(q8.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn), *as_numpy, **factors)
    expected = foveal.attention(q8, k, v, **descales)
    assert out.dtype == ml_dtypes.bfloat16
    assert np.array_equal(out.view(np.int16), expected.view(torch.int16).numpy())


def test_jax():
    jnp = pytest.importorskip("jax.numpy")
    q, k, v, descales = tensors(torch.float32)
    arrays = [jnp.asarray(x.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)) for x in (k, v)]
    factors = {name: jnp.asarray(x.numpy()) for name, x in descales.items()}
    out = foveal.attention(jnp.asarray(q.numpy()), *arrays, **factors)
    np.testing.assert_array_equal(np.asarray(out), foveal.attention(q, k, v, **descales).numpy())


def test_bytes_are_e4m3_only_where_that_is_said():
    q, k, v, descales = tensors()
    as_bytes = [x.view(torch.uint8) for x in (k, v)]
    with pytest.raises(foveal.InvalidArgument, match='^k.dtype is uint8; .*or uint8 with uint8_as="float8_e4m3fn"'):
        foveal.attention(q, *as_bytes, **descales)
    expected = foveal.attention(q, k, v, **descales)
    assert torch.equal(foveal.attention(q, *as_bytes, **descales, uint8_as="float8_e4m3fn"), expected)
    with pytest.raises(foveal.InvalidArgument, match="uint8_as is 'e4m3'; known is"):
        foveal.attention(q, *as_bytes, **descales, uint8_as="e4m3")
    with pytest.raises(foveal.InvalidArgument, match="^mask.dtype is uint8"):
        foveal.attention(q, k, v, mask=torch.ones(1, 1, 1, S_K, dtype=torch.uint8), uint8_as="float8_e4m3fn")
    cache = torch.zeros(1, 4, H_K, D, dtype=torch.uint8)
    rows, length = torch.randn(1, 3, H_K, D), torch.zeros(1, dtype=torch.int32)
    foveal.append(rows, None, cache, None, cache_lengths=length, uint8_as="float8_e4m3fn")
    assert torch.equal(cache[:, :3].view(E4M3).float(), rows.to(E4M3).float())


# ---- into e4m3


def test_append_saturates_and_keeps_nan():
    k = torch.tensor([500.0, -1e30, float("inf"), float("nan"), 464.0, 465.0, 1.0625, 0.0]).view(1, 1, 8)
    cache = torch.zeros(1, 1, 1, 8, dtype=E4M3)
    foveal.append(k, None, cache, None, slot_mapping=torch.tensor([0]))
    torch.testing.assert_close(
        cache.float().flatten(), torch.tensor([448.0, -448, 448, float("nan"), 448, 448, 1, 0]), equal_nan=True
    )
    with pytest.raises(foveal.InvalidArgument, match=r"k_scale\[0\] is 0.*positive and finite"):
        foveal.append(k, None, cache, None, slot_mapping=torch.tensor([0]), k_scale=torch.zeros(1))


@pytest.mark.parametrize("of_rows", [False, True])
def test_append_works_scales_out(of_rows):
    torch.manual_seed(2)
    k, v = torch.randn(B, 7, H_K, D).mul(30).to(torch.bfloat16), torch.randn(B, 7, H_K, 24).to(torch.bfloat16)
    caches = [torch.zeros(6, 4, H_K, x.shape[-1], dtype=E4M3) for x in (k, v)]
    table = torch.tensor([[4, 1], [0, 3]], dtype=torch.int32)
    scales = [torch.full((6, 4, H_K) if of_rows else (H_K,), -1.0) for _ in range(2)]
    where = {"cache_lengths": torch.tensor([1, 0], dtype=torch.int32), "block_table": table}
    foveal.append(k, v, *caches, **where, k_scale_out=scales[0], v_scale_out=scales[1])
    place = torch.tensor([[table[i, j // 4] * 4 + j % 4 for j in range(1 - i, 8 - i)] for i in range(B)])
    for x, cache, scale in zip((k, v), caches, scales, strict=True):
        absmax = x.float().abs().amax(3)
        expected = absmax / 448 if of_rows else absmax.amax((0, 1)).expand(B, 7, H_K) / 448
        got = scale.view(-1, H_K)[place] if of_rows else scale.expand(B, 7, H_K)
        assert torch.equal(got, expected)
        codes = cache.view(torch.uint8).view(24, H_K, -1)[place]
        assert torch.equal(codes, (x.float() / got[..., None]).clamp(-448, 448).to(E4M3).view(torch.uint8))
    if of_rows:
        assert (scales[0] == -1).sum() == (24 - 2 * 7) * H_K

    q = torch.randn(B, 1, H_Q, D).to(torch.bfloat16)
    used = torch.tensor([8, 7], dtype=torch.int32)
    descales = scales if of_rows else [x.expand(B, H_K) for x in scales]
    options = {"seqused_k": used, "k_descale": descales[0].abs(), "v_descale": descales[1].abs()}
    out = foveal.attention(q, *caches, block_table=table, **options)
    rows = torch.tensor([[table[i, j // 4] * 4 + j % 4 for j in range(8)] for i in range(B)])
    plain = []
    for cache, descale in zip(caches, descales, strict=True):
        factor = descale.abs().view(24, H_K)[rows] if of_rows else descale[:, None].expand(B, 8, H_K)
        values = cache.view(torch.uint8).view(24, H_K, -1)[rows].view(E4M3).float()
        plain.append((values * factor[..., None]).to(torch.bfloat16))
    assert torch.equal(out, foveal.attention(q, *plain, seqused_k=used))


def test_scales_that_are_worked_out_are_refused_by_name():
    k, cache, length = torch.ones(1, 2, 1, 8), torch.zeros(1, 4, 1, 8, dtype=E4M3), torch.zeros(1, dtype=torch.int32)
    for message, options in {
        "k_scale and k_scale_out are present": {"k_scale": torch.ones(1), "k_scale_out": torch.ones(1)},
        "k_scale_out.rank is 2": {"k_scale_out": torch.ones(1, 4)},
        r"k_scale_out.shape\[1\] is 5": {"k_scale_out": torch.ones(1, 5, 1)},
        "v_scale_out is present, but v is absent": {"v_scale_out": torch.ones(1)},
        "k_scale_out.dtype is float64": {"k_scale_out": torch.ones(1, dtype=torch.float64)},
    }.items():
        with pytest.raises(foveal.InvalidArgument, match=f"^{message}"):
            foveal.append(k, None, cache, None, cache_lengths=length, **options)
    with pytest.raises(foveal.InvalidArgument, match="^k_scale_out is present, but k_cache.dtype is f32"):
        foveal.append(k, None, cache.float(), None, cache_lengths=length, k_scale_out=torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantize_qkv(dtype):
    torch.manual_seed(1)
    q, k, v = torch.randn(B, 9, H_Q, D), torch.randn(B, 13, H_K, D), torch.randn(B, 13, H_K, 24) * 100
    k[1, :, 0] = 0
    q, k, v = (x.to(dtype) for x in (q, k, v))
    q8, k8, v8, q_descale, k_descale, v_descale = foveal.quantize_qkv(q, k, v)
    scale = k.float().abs().amax((1, 3)) / 448
    assert k_descale[1, 0] == 1 and torch.equal(k_descale[0], scale[0]) and k8.dtype == E4M3
    assert torch.equal(q_descale, q.float().abs().amax((1, 3)).view(B, H_K, 2).amax(2) / 448)
    for codes, x, descale in ((q8, q, q_descale.repeat_interleave(2, 1)), (k8, k, k_descale), (v8, v, v_descale)):
        expected = (x.float() / descale[:, None, :, None]).clamp(-448, 448).to(E4M3)
        assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))
    out = foveal.attention(q8, k8, v8, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    torch.testing.assert_close(out.float(), foveal.attention(q, k, v).float(), rtol=0.1, atol=12)

    of_numpy = foveal.quantize_qkv(*(x.float().numpy() for x in (q, k, v)))
    for got, expected in zip(of_numpy, foveal.quantize_qkv(q.float(), k.float(), v.float()), strict=True):
        assert np.array_equal(np.atleast_1d(got).view(np.uint8), expected.view(torch.uint8).numpy())
    assert of_numpy[0].dtype == ml_dtypes.float8_e4m3fn


def test_quantize_qkv_of_empty_and_unusual_tensors():
    q, k = torch.zeros(0, 3, 2, 8), torch.zeros(0, 0, 1, 8)
    assert [x.shape for x in foveal.quantize_qkv(q, k, k)[3:]] == [(0, 1)] * 3
    q, k = torch.ones(1, 3, 2, 8), torch.ones(1, 0, 1, 8)
    assert [x.tolist() for x in foveal.quantize_qkv(q, k, k)[3:]] == [[[pytest.approx(1 / 448)]], [[1]], [[1]]]
    k = torch.tensor([float("nan"), float("inf"), 3.0, -500.0]).view(1, 1, 1, 4)
    codes, descale = foveal.quantize_qkv(k, k, k)[1::3]
    assert torch.equal(descale, torch.tensor([[500 / 448]])) and codes.float().flatten()[1:].tolist() == [
        448,
        2.75,
        -448,
    ]
    assert codes.float().flatten()[0].isnan()
    with pytest.raises(foveal.InvalidArgument, match="k has rank 3"):
        foveal.quantize_qkv(q, k[0], k)
    with pytest.raises(TypeError, match="v is of type ndarray and q of type Tensor"):
        foveal.quantize_qkv(q, k, k.numpy())
    with pytest.raises(foveal.InvalidArgument, match="q has 3 heads and k 2"):
        foveal.quantize_qkv(torch.ones(1, 1, 3, 8), torch.ones(1, 1, 2, 8), torch.ones(1, 1, 2, 8))


# ---- what is refused


def test_refusals_by_name():
    q, k, v, descales = tensors()
    for message, change in {
        "v.dtype is bf16; k's dtype needs e4m3": {"v": q[:, :1, :H_K].expand(-1, S_K, -1, -1)},
        r"k_descale.shape\[1\] is 4 but the number of k heads is 2": {"k_descale": torch.ones(B, H_Q)},
        r"k_descale.shape\[0\] is 1 but the batch size is 2": {"k_descale": torch.ones(1, H_K)},
        "v_descale.rank is 1": {"v_descale": torch.ones(H_K)},
        "k_descale.dtype is bf16; k_descale needs f32": {"k_descale": torch.ones(B, H_K, dtype=torch.bfloat16)},
        "q_descale is present, but q.dtype is bf16": {"q_descale": torch.ones(B, H_K)},
        "sinks.dtype is float8_e4m3fn; foveal takes float32": {"sinks": torch.ones(H_Q).to(E4M3)},
    }.items():
        arguments = {"q": q, "k": k, "v": v, **descales, **change}
        with pytest.raises(foveal.InvalidArgument, match=f"^{message}"):
            foveal.attention(**arguments)
    with pytest.raises(foveal.InvalidArgument, match="^k.dtype is bf16; q's dtype needs e4m3"):
        foveal.attention(q.to(E4M3), q, q)
    with pytest.raises(foveal.InvalidArgument, match="k.dtype is e4m3; gradients are of f32, bf16 and f16"):
        foveal.attention(q.requires_grad_(), k, v)


def test_supports_says_who():
    q, kv = ((1, 1, 8, 128), "bfloat16"), ((1, 900, 8, 128), "float8_e4m3fn")
    assert foveal.supports(q, kv, kv, backend="cpu", k_descale=((1, 8), "float32"))
    assert foveal.supports(q, kv, kv, backend="sm90", k_descale=((1, 8), "float32"))
    wide = ((1, 1, 8, 72), "bfloat16"), ((1, 900, 8, 72), "float8_e4m3fn")
    assert "k's head dimension is 72" in foveal.supports(wide[0], wide[1], wide[1], backend="sm90").reason
    assert "softcap" in foveal.supports(kv, kv, kv, softcap=30.0, backend="sm90").reason
    assert "out        bf16" in foveal.plan(kv, kv, kv, backend="cpu").text
    as_bytes = ((1, 900, 8, 128), "uint8")
    assert foveal.supports(q, as_bytes, as_bytes, backend="cpu", uint8_as="float8_e4m3fn")


# ---- PyTorch's operators, and FlashAttention's names


def test_operators():
    import foveal.torch

    q, k, v, descales = tensors()
    expected = foveal.attention(q, k, v, **descales)
    assert torch.equal(torch.ops.foveal.attention(q, k, v, **descales), expected)
    as_bytes = [x.view(torch.uint8) for x in (k, v)]
    out = torch.ops.foveal.attention(q, *as_bytes, **descales, uint8_as="float8_e4m3fn")
    assert torch.equal(out, expected)
    compiled = torch.compile(foveal.torch.attention, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q, k, v, **descales), expected)
    with torch.device("meta"):
        for q_dtype, out_dtype in ((E4M3, torch.bfloat16), (torch.float16, torch.float16)):
            q, kv = torch.empty(2, 3, 4, 64, dtype=q_dtype), torch.empty(2, 9, 2, 32, dtype=E4M3)
            out, lse = torch.ops.foveal.attention_lse(q, kv, kv)
            assert out.dtype == out_dtype and out.shape == (2, 3, 4, 32) and lse.dtype == torch.float32
    cache = torch.zeros(1, 4, H_K, D, dtype=E4M3)
    rows = torch.randn(1, 3, H_K, D)
    torch.ops.foveal.append(rows, None, cache, None, cache_lengths=torch.zeros(1, dtype=torch.int32))
    assert torch.equal(cache[:, :3].float(), rows.to(E4M3).float())
    scale = torch.zeros(1, 4, H_K)
    torch.ops.foveal.append(rows, None, cache, None, cache_lengths=torch.zeros(1, dtype=torch.int32), k_scale_out=scale)
    assert torch.equal(scale[:, :3], rows.abs().amax(3) / 448) and not scale[:, 3].any()


def test_flash_attention():
    from foveal.compat import flash_attn

    q, k, v, descales = tensors()
    q = q.to(E4M3)
    descales["q_descale"] = torch.rand(B, H_K)
    expected = foveal.attention(q, k, v, causal=True, **descales)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(flash_attn.flash_attn_func(q, k, v, causal=True, **descales), expected)
    ends_q, ends_k = (torch.tensor([0, s, 2 * s], dtype=torch.int32) for s in (S_Q, S_K))
    flat = [x.view(torch.uint8).flatten(0, 1).view(E4M3) for x in (q, k, v)]
    out = flash_attn.flash_attn_varlen_func(*flat, ends_q, ends_k, causal=True, **descales)
    assert torch.equal(out.view_as(expected), expected)
    assert torch.equal(flash_attn.flash_attn_with_kvcache(q, k, v, causal=True, **descales), expected)
    new = torch.zeros(B, 1, H_K, D, dtype=torch.bfloat16)
    with pytest.raises(foveal.UnsupportedError, match="k_descale or v_descale is given beside new k and v"):
        flash_attn.flash_attn_with_kvcache(q, k, v, new, new, cache_seqlens=9, **descales)


def test_flashinfer():
    from foveal.compat import flashinfer

    q, k, v, _ = tensors(s_q=3)
    descales = {"k_descale": torch.full((B, H_K), 0.03), "v_descale": torch.tensor([[0.02, 0.05]]).expand(B, H_K)}
    scales = {"k_scale": 0.03, "v_scale": descales["v_descale"][0]}
    pages = tuple(x.view(torch.uint8).view(14, 10, H_K, D).view(E4M3) for x in (k, v))
    indptr, indices = torch.tensor([0, 7, 14], dtype=torch.int32), torch.arange(14, dtype=torch.int32)
    last = torch.full((B,), 10, dtype=torch.int32)
    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper()
    decode.plan(indptr, indices, last, H_Q, H_K, D, 10, o_data_type=torch.float16)
    expected = foveal.attention(q[:, :1], k, v, **descales)
    assert torch.equal(decode.run(q[:, 0], pages, **scales), expected[:, 0])
    prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper()
    prefill.plan(torch.tensor([0, 3, 6], dtype=torch.int32), indptr, indices, last, H_Q, H_K, D, 10, causal=True)
    flat = q.flatten(0, 1)
    expected = foveal.attention(q, k, v, causal=True, **descales).flatten(0, 1)
    assert torch.equal(prefill.run(flat, pages, **scales), expected)

    q8 = q.to(E4M3)
    descales["q_descale"], scales["q_scale"] = torch.full((B, H_K), 0.5), 0.5
    as_bytes = q8.view(torch.uint8)
    first = as_bytes[:, 0].view(E4M3)
    out = torch.empty(B, 1, H_Q, D, dtype=torch.float16)
    expected = foveal.attention(first[:, None], k, v, **descales, out=out)
    assert torch.equal(decode.run(first, pages, **scales), expected[:, 0])
    flat = as_bytes.flatten(0, 1).view(E4M3)
    out = torch.empty(flat.shape, dtype=torch.float16)
    assert prefill.run(flat, pages, **scales, out=out).data_ptr() == out.data_ptr()
    expected = foveal.attention(q8, k, v, causal=True, **descales, out=torch.empty(q.shape, dtype=torch.float16))
    assert torch.equal(out, expected.flatten(0, 1))
    assert prefill.run(flat, pages, **scales).dtype == torch.bfloat16

    with pytest.raises(foveal.UnsupportedError, match="q_scale is 0.5 beside torch.bfloat16"):
        decode.run(q[:, 0], pages, q_scale=0.5)
    with pytest.raises(foveal.InvalidArgument, match="v_scale has 3 elements"):
        decode.run(q[:, 0], pages, v_scale=torch.ones(3))


def test_jax_under_jit():
    jax = pytest.importorskip("jax")
    import foveal.jax

    def array(x):
        bits = x.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn) if x.dtype == E4M3 else x.numpy()
        return jax.numpy.asarray(bits)

    def equal(got, expected):
        return np.array_equal(np.asarray(got).astype(np.float32), expected.float().numpy())

    q, k, v, descales = tensors(torch.float32)
    arrays, factors = [array(x) for x in (q, k, v)], {name: array(x) for name, x in descales.items()}
    attention = jax.jit(foveal.jax.attention, static_argnames=("causal", "return_lse", "out_dtype"))
    got = attention(*arrays, **factors, causal=True, return_lse=True)
    assert all(map(equal, got, foveal.attention(q, k, v, **descales, causal=True, return_lse=True)))
    of_rows = torch.rand(B, S_K, H_K) / 20 + 0.01
    assert equal(attention(*arrays, k_descale=array(of_rows)), foveal.attention(q, k, v, k_descale=of_rows))

    all_factors = descales | {"q_descale": torch.rand(B, H_K) + 0.5}
    q8, of_jax = q.to(E4M3), {name: array(x) for name, x in all_factors.items()}
    for dtype, name in ((torch.bfloat16, None), (torch.float16, "float16")):
        got = attention(array(q8), *arrays[1:], **of_jax, out_dtype=name)
        assert got.dtype == str(dtype).removeprefix("torch.")
        assert equal(got, foveal.attention(q8, k, v, **all_factors, out=torch.empty(q.shape, dtype=dtype)))

    doubled = jax.numpy.stack([factors["v_descale"], 2 * factors["v_descale"]])
    mapped = jax.vmap(lambda descale: foveal.jax.attention(*arrays, v_descale=descale))(doubled)
    for i in (0, 1):
        assert equal(mapped[i], foveal.attention(q, k, v, v_descale=(1 + i) * descales["v_descale"]))


def test_jax_refuses_by_name():
    jax = pytest.importorskip("jax")
    import foveal.jax

    q, k, v, _ = tensors(torch.float32)
    q = jax.numpy.asarray(q.numpy())
    k, v = (jax.numpy.asarray(x.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)) for x in (k, v))
    with pytest.raises(foveal.UnsupportedError, match="^key.dtype is float8_e4m3fn.*foveal.jax.attention"):
        foveal.jax.dot_product_attention(q, k, v)
    with pytest.raises(foveal.UnsupportedError, match="^k.dtype is float8_e4m3fn, which has no gradients"):
        jax.grad(lambda q: foveal.jax.attention(q, k, v).sum())(q)
    for wrong, needed in (("float16", "float32 or None"), ("float8_e4m3fn", "float32 or None")):
        with pytest.raises(foveal.InvalidArgument, match=f"out_dtype is {wrong}; beside q in float32 .* {needed}"):
            foveal.jax.attention(q, k, v, out_dtype=wrong)
    with pytest.raises(foveal.InvalidArgument, match="out_dtype is float32; .* bfloat16 or float16"):
        foveal.jax.attention(k[:, :5], k, v, out_dtype="float32")
    with pytest.raises(foveal.InvalidArgument, match="q_descale"):
        foveal.jax.attention(q, k, v, q_descale=jax.numpy.ones((B, H_K)))


def test_scales_of_rows_go_along_with_their_pages():
    k, length = torch.randn(1, 4, H_K, D), torch.zeros(1, dtype=torch.int32)
    cache, scales = torch.zeros(3, 4, H_K, D, dtype=E4M3), torch.zeros(3, 4, H_K)
    foveal.append(k, None, cache, None, cache_lengths=length, k_scale_out=scales)
    pairs = torch.tensor([[0, 2]], dtype=torch.int32)
    foveal.copy_pages(cache, None, pairs)
    foveal.copy_pages(scales[..., None], None, pairs)
    assert torch.equal(scales[2], scales[0]) and scales[0].all() and not scales[1].any()
    assert torch.equal(cache[2].view(torch.uint8), cache[0].view(torch.uint8))
