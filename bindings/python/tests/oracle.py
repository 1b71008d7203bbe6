"""Attention in float64 by the definition, in NumPy; and the tolerance that a result has to keep."""

import numpy as np


def _per_head(values, batch):
    values = np.asarray(values, np.float64)
    return np.broadcast_to(values, (batch, values.shape[-1]))[:, :, None, None]


def scores(q, k, *, scale=None, causal=False, window=(None, None), align="bottom_right", softcap=0.0, chunk=0,
           alibi_slopes=None, bias=None, mask=None, seqused_q=None, seqused_k=None):  # fmt: skip
    """[b, h_q, s_q, s_k] in float64, -inf where the key is not seen."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    (b, s_q, h_q, d), (_, s_k, h_k, _) = q.shape, k.shape
    x = np.einsum("bihd,bjhd->bhij", q, np.repeat(k, h_q // h_k, axis=2)) * (d**-0.5 if scale is None else scale)
    if softcap > 0:
        x = softcap * np.tanh(x / softcap)
    len_q = np.full(b, s_q) if seqused_q is None else np.asarray(seqused_q)
    len_k = np.full(b, s_k) if seqused_k is None else np.asarray(seqused_k)
    off = (len_k - len_q if align == "bottom_right" else np.zeros(b, int))[:, None, None, None]
    i, j = np.arange(s_q)[None, None, :, None] + off, np.arange(s_k)[None, None, None, :]
    if alibi_slopes is not None:
        x = x - _per_head(alibi_slopes, b) * np.abs(i - j)
    if bias is not None:
        x = x + np.asarray(bias, np.float64)
    seen = (j < len_k[:, None, None, None]) & (np.arange(s_q)[None, None, :, None] < len_q[:, None, None, None])
    left, right = window[0], 0 if causal else window[1]
    if left is not None:
        seen = seen & (j >= i - left)
    if right is not None:
        seen = seen & (j <= i + right)
    if chunk:
        seen = seen & (j // chunk == i // chunk)
    if mask is not None:
        seen = seen & np.asarray(mask)
    return np.where(seen, x, -np.inf)


def attention(q, k, v, *, sinks=None, dtype=np.float64, **options):
    """(out [b, s_q, h_q, d_v], lse [b, h_q, s_q]). dtype: P and out are rounded to it, as a kernel does."""
    x = scores(q, k, **options)
    sink = -np.inf if sinks is None else _per_head(sinks, x.shape[0])
    top = np.maximum(x.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(np.isfinite(top), top, 0.0)
    p = np.exp(x - top)
    total = p.sum(-1, keepdims=True) + np.exp(sink - top)
    values = np.repeat(np.asarray(v, np.float64), x.shape[1] // v.shape[2], axis=2)
    out = np.einsum("bhij,bjhd->bhid", p.astype(dtype).astype(np.float64), values)
    out = np.divide(out, total, out=np.zeros_like(out), where=total > 0).transpose(0, 2, 1, 3)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return out.astype(dtype).astype(np.float64), lse


def assert_close(out, q, k, v, dtype, lse=None, **options):
    """out against float64: at most twice the error of a straightforward computation in `dtype`, plus its rounding."""
    expected, expected_lse = attention(q, k, v, **options)
    plain, _ = attention(q, k, v, dtype=dtype, **options)
    actual = np.asarray(out, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    rounding = np.abs(expected.astype(dtype).astype(np.float64) - expected).max(initial=0)
    if dtype == np.float32:  # its reference accumulates in float64
        rounding += 1e-6 * (1 + np.abs(np.asarray(v, np.float64)).max(initial=0))
    bound = 2 * np.abs(plain - expected).max(initial=0) + rounding
    assert np.abs(actual - expected).max(initial=0) <= bound
    if lse is not None:
        actual_lse = np.asarray(lse, np.float64)
        assert actual_lse.shape == expected_lse.shape
        finite = np.isfinite(expected_lse)
        assert (actual_lse[~finite] == expected_lse[~finite]).all()
        gap = np.abs(actual_lse[finite] - expected_lse[finite])
        assert (gap <= 2e-5 * (1 + np.abs(expected_lse[finite]))).all()
