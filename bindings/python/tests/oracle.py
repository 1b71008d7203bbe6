"""Attention by the definition, in NumPy: in float64 (the oracle), and as the textbook computes it in the precision of
the inputs. The tolerance of a result is the contract's (1.10), measured by the latter: there is no epsilon to choose.
"""

import numpy as np

MAX_FACTOR, NORM_FACTOR, LSE_TOLERANCE = 2, 1.2, 2e-5
MIN_ROWS_FOR_NORM = 64  # as tests/support/tolerance.cpp has it: with fewer, the ratio of two norms is chance


def _per_head(values, batch, precision):
    values = np.asarray(values).astype(precision)
    return np.broadcast_to(values, (batch, values.shape[-1]))[:, :, None, None]


def scores(q, k, *, scale=None, causal=False, window=(None, None), align="bottom_right", softcap=0.0, chunk=0,
           alibi_slopes=None, bias=None, mask=None, seqused_q=None, seqused_k=None, precision=np.float64):  # fmt: skip
    """[b, h_q, s_q, s_k] in `precision`, -inf where the key is not seen. Products are summed term after term."""
    q, k = np.asarray(q).astype(precision), np.asarray(k).astype(precision)
    (b, s_q, h_q, d), (_, s_k, h_k, _) = q.shape, k.shape
    q, k = q.transpose(0, 2, 1, 3), np.repeat(k, h_q // h_k, axis=2).transpose(0, 2, 1, 3)
    x = np.zeros((b, h_q, s_q, s_k), precision)
    for channel in range(d):
        x += q[..., channel, None] * k[..., None, :, channel]
    x *= precision(d**-0.5 if scale is None else scale)
    if softcap > 0:
        x = precision(softcap) * np.tanh(x / precision(softcap))
    len_q = np.full(b, s_q) if seqused_q is None else np.asarray(seqused_q)
    len_k = np.full(b, s_k) if seqused_k is None else np.asarray(seqused_k)
    off = (len_k - len_q if align == "bottom_right" else np.zeros(b, int))[:, None, None, None]
    i, j = np.arange(s_q)[None, None, :, None] + off, np.arange(s_k)[None, None, None, :]
    if alibi_slopes is not None:
        x = x - _per_head(alibi_slopes, b, precision) * np.abs(i - j).astype(precision)
    if bias is not None:
        x = x + np.asarray(bias).astype(precision)
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
    return np.where(seen, x, precision(-np.inf))


def attention(q, k, v, *, sinks=None, dtype=None, **options):
    """(out [b, s_q, h_q, d_v], lse [b, h_q, s_q]). dtype None: in float64. Else as the textbook does it in that type:
    sums in float32 term after term, P rounded before the second product, the output once."""
    precision = np.float64 if dtype is None else np.float32
    rounded = lambda values: values if dtype is None else values.astype(dtype).astype(precision)  # noqa: E731
    x = scores(q, k, precision=precision, **options)
    values = np.repeat(np.asarray(v).astype(precision), x.shape[1] // v.shape[2], axis=2).transpose(0, 2, 1, 3)
    sink = precision(-np.inf) if sinks is None else _per_head(sinks, x.shape[0], precision)
    top = np.maximum(x.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(np.isfinite(top), top, precision(0))
    p = np.exp(x - top)
    total = np.broadcast_to(np.exp(sink - top), top.shape).astype(precision)
    out = np.zeros((*x.shape[:-1], values.shape[-1]), precision)
    for j in range(x.shape[-1]):
        total += p[..., j : j + 1]
        out += rounded(p[..., j : j + 1]) * values[..., j : j + 1, :]
    out = np.divide(out, total, out=np.zeros_like(out), where=total != 0).transpose(0, 2, 1, 3)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return rounded(out).astype(np.float64), lse.astype(np.float64)


def same_where_not_finite(actual, expected):
    """Do both have the same infinities and NaN in the same places?"""
    finite = np.isfinite(expected)
    places = (np.isfinite(actual) == finite).all()
    return places and np.array_equal(actual[~finite], expected[~finite], equal_nan=True)


def assert_close(out, q, k, v, dtype, lse=None, **options):
    """out, of type dtype, and lse against the oracle, within the contract's tolerance."""
    expected, expected_lse = attention(q, k, v, **options)
    plain, _ = attention(q, k, v, dtype=dtype, **options)
    actual, rounded = np.asarray(out).astype(np.float64), expected.astype(dtype).astype(np.float64)
    assert actual.shape == expected.shape
    assert same_where_not_finite(actual, rounded)
    finite = np.isfinite(rounded)
    assert np.isfinite(plain[finite]).all(), "the case proves nothing: the reference overflows"
    error, plain_error = (np.where(finite, x - expected, 0.0) for x in (actual, plain))
    rounding = np.abs(np.where(finite, rounded - expected, 0.0)).max(initial=0)
    assert np.abs(error).max(initial=0) <= MAX_FACTOR * np.abs(plain_error).max(initial=0) + rounding
    if (plain_error != 0).any(-1).sum() >= MIN_ROWS_FOR_NORM:  # rows of one key are exact
        assert np.linalg.norm(error) <= NORM_FACTOR * np.linalg.norm(plain_error)
    if lse is not None:
        assert_lse_close(np.asarray(lse).astype(np.float64), expected_lse)


def assert_lse_close(actual, expected):
    assert actual.shape == expected.shape
    assert same_where_not_finite(actual, expected)
    finite = np.isfinite(expected)
    gap = np.abs(actual[finite] - expected[finite])
    assert (gap <= LSE_TOLERANCE * (1 + np.abs(expected[finite]))).all()
