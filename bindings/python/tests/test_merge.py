"""foveal.merge: attention over parts of the keys, merged, is attention over all."""

import foveal
import numpy as np
import pytest


def parts(dtype=np.float32, splits=(0, 10, 11, 40)):
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, s, 4, 16)).astype(dtype) for s in (7, 40, 40))
    whole = foveal.attention(q, k, v, return_lse=True)
    results = [
        foveal.attention(q, k[:, begin:end], v[:, begin:end], return_lse=True)
        for begin, end in zip(splits, splits[1:], strict=False)
    ]
    return whole, [out for out, _ in results], [lse for _, lse in results]


def test_parts_are_the_whole():
    (out, lse), outs, lses = parts()
    merged, merged_lse = foveal.merge(outs, lses)
    np.testing.assert_allclose(merged, out, atol=2e-6)
    np.testing.assert_allclose(merged_lse, lse, atol=2e-6)


def test_empty_parts():
    (out, lse), outs, lses = parts(splits=(0, 0, 40))
    outs[0][:] = np.nan  # its lse is -inf: what it holds counts nothing
    merged, merged_lse = foveal.merge(outs, lses)
    np.testing.assert_allclose(merged, out, atol=2e-6)
    np.testing.assert_allclose(merged_lse, lse, atol=2e-6)
    empty, empty_lse = foveal.merge([outs[0]] * 2, [lses[0]] * 2)
    assert (empty == 0).all() and (empty_lse == -np.inf).all()


def test_in_place_and_torch(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    (out, _), outs, lses = parts()
    outs, lses = ([torch.from_numpy(x).to(device) for x in xs] for xs in (outs, lses))
    merged, merged_lse = foveal.merge(outs, lses, out=outs[0], lse=lses[0])
    assert merged is outs[0] and merged_lse is lses[0]
    np.testing.assert_allclose(merged.cpu(), out, atol=2e-6)


def test_refusals_name_the_argument():
    _, outs, lses = parts()
    with pytest.raises(foveal.InvalidArgument, match="lses has 2 parts but outs has 3"):
        foveal.merge(outs, lses[:2])
    with pytest.raises(foveal.InvalidArgument, match="outs has 0 parts"):
        foveal.merge([], [])
    with pytest.raises(TypeError, match="outs is 3"):
        foveal.merge(3, lses)
    with pytest.raises(foveal.InvalidArgument, match="lses"):
        foveal.merge(outs, [lse[:, :2] for lse in lses])
