"""Sequence offsets and used lengths: what is checked, and what rows outside every sequence hold."""

import foveal
import numpy as np
import pytest

FRAMEWORKS = ["numpy", "torch", "jax"]


def tensors(rows_q=10, rows_k=12):
    rng = np.random.default_rng(4)
    return [rng.standard_normal((n, 2, 16)).astype(np.float32) for n in (rows_q, rows_k, rows_k)]


def int32(*values):
    return np.array(values, np.int32)


def converter(framework):
    """From NumPy to `framework`"""
    if framework == "numpy":
        return np.asarray
    module = pytest.importorskip(framework, reason=f"SKIPPED: no {framework}")
    if framework == "torch":
        return module.from_numpy
    # On the CPU also where JAX has a GPU, which foveal refuses.
    return lambda array: module.device_put(array, module.devices("cpu")[0])


@pytest.mark.parametrize("wrong", [(0, 4, 8), (2, 4, 10), (0, 4, 11), (0, 11, 10), (0, -1, 10)], ids=str)
def test_offsets_that_do_not_ascend_from_0_to_total(wrong):
    q, k, v = tensors()
    with pytest.raises(foveal.InvalidArgument, match=r"cu_seqlens_q\[\d\] is"):
        foveal.attention_varlen(q, k, v, int32(*wrong), int32(0, 5, 12))
    q, k, v = tensors(12, 10)
    with pytest.raises(foveal.InvalidArgument, match=r"cu_seqlens_k\[\d\] is"):
        foveal.attention_varlen(q, k, v, int32(0, 5, 12), int32(*wrong))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("varlen", [False, True], ids=["dense", "varlen"])
def test_unused_rows_of_a_new_result(framework, varlen):
    convert = converter(framework)
    q, k, v = (convert(x if varlen else x.reshape(2, -1, 2, 16)) for x in tensors())
    used = [3, 0]
    options = {"seqused_q": convert(int32(*used)), "return_lse": True}
    junk = [np.full((10, 2, 16), np.nan, np.float32) for _ in range(50)]  # what fresh memory may hold
    del junk
    if varlen:
        ends = convert(int32(0, 5, 10)), convert(int32(0, 6, 12))
        out, lse = foveal.attention_varlen(q, k, v, *ends, **options)
        out, lse = np.asarray(out).reshape(2, 5, 2, 16), np.asarray(lse).reshape(2, 2, 5).transpose(1, 0, 2)
    else:
        out, lse = (np.asarray(x) for x in foveal.attention(q, k, v, **options))
    for i, n in enumerate(used):
        assert (out[i, :n] != 0).any(-1).all() and np.isfinite(lse[i, :, :n]).all()
        assert (out[i, n:] == 0).all() and (lse[i, :, n:] == -np.inf).all()


def test_unused_rows_on_a_device(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    q = torch.ones(1, 8, 2, 64, dtype=torch.bfloat16, device=device)
    used = torch.tensor([3], dtype=torch.int32, device=device)
    out, lse = foveal.attention(q, q, q, seqused_q=used, return_lse=True)
    assert (out[:, :3] == 1).all() and (out[:, 3:] == 0).all() and (lse[:, :, 3:] == -torch.inf).all()


def test_unused_rows_of_the_callers_result():
    q, k, v = tensors()
    out = np.full_like(q, 7)
    foveal.attention_varlen(q, k, v, int32(0, 5, 10), int32(0, 6, 12), seqused_q=int32(3, 5), out=out)
    assert (out[3:5] == 7).all() and (out[5:] != 7).any()
