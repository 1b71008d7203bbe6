"""foveal.attention_varlen: each sequence is what foveal.attention makes of it alone."""

import foveal
import numpy as np
import pytest

LENGTHS_Q, LENGTHS_K = [5, 0, 33, 64], [9, 4, 33, 0]


def offsets(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def inputs(dtype=np.float32, h_q=4, h_k=2, d=16):
    rng = np.random.default_rng(2)
    total_q, total_k = sum(LENGTHS_Q), sum(LENGTHS_K)
    shapes = (total_q, h_q, d), (total_k, h_k, d), (total_k, h_k, d)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


OPTIONS = [{}, {"causal": True}, {"window": (4, 2)}, {"causal": True, "softcap": 3.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_sequence_alone(options):
    q, k, v = inputs()
    cu_q, cu_k = offsets(LENGTHS_Q), offsets(LENGTHS_K)
    out, lse = foveal.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
    assert out.shape == q.shape and lse.shape == (4, len(q))
    for i in range(len(LENGTHS_Q)):
        rows, keys = slice(cu_q[i], cu_q[i + 1]), slice(cu_k[i], cu_k[i + 1])
        alone, alone_lse = foveal.attention(q[None, rows], k[None, keys], v[None, keys], return_lse=True, **options)
        assert (out[rows] == alone[0]).all() and (lse[:, rows] == alone_lse[0]).all()


def test_torch(device, require):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    q, k, v = (torch.from_numpy(x).to(device, torch.bfloat16) for x in inputs(d=64))
    cu_q, cu_k = (torch.from_numpy(offsets(lengths)).to(device) for lengths in (LENGTHS_Q, LENGTHS_K))
    require(foveal.supports(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True), device)
    out = foveal.attention_varlen(q, k, v, cu_q, cu_k, causal=True)
    rows, keys = slice(cu_q[2], cu_q[3]), slice(cu_k[2], cu_k[3])
    assert torch.equal(out[rows], foveal.attention(q[None, rows], k[None, keys], v[None, keys], causal=True)[0])


def test_used_lengths():
    q, k, v = inputs()
    used = np.array([3, 4, 20, 0], np.int32)
    k[offsets(LENGTHS_K)[2] + 20 : offsets(LENGTHS_K)[3]] = np.nan  # what is not used does not count
    out = foveal.attention_varlen(q, k, v, offsets(LENGTHS_Q), offsets(LENGTHS_K), seqused_k=used)
    assert np.isfinite(out).all()


def test_refusals_name_the_argument():
    q, k, v = inputs()
    cu_q, cu_k = offsets(LENGTHS_Q), offsets(LENGTHS_K)
    with pytest.raises(TypeError, match="cu_seqlens_k is None"):
        foveal.attention_varlen(q, k, v, cu_q, None)
    with pytest.raises(foveal.InvalidArgument, match="cu_seqlens_q.shape"):
        foveal.attention_varlen(q, k, v, cu_q[:-1], cu_k)
    with pytest.raises(foveal.InvalidArgument, match="q has rank 4"):
        foveal.attention_varlen(q[None], k, v, cu_q, cu_k)
    with pytest.raises(foveal.InvalidArgument, match="cu_seqlens_q.dtype is int64"):
        foveal.attention_varlen(q, k, v, cu_q.astype(np.int64), cu_k)
