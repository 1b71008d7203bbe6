"""foveal.append: the rows that the contract says, in NumPy, PyTorch and its operators. Every bit: the C++ tests."""

import foveal
import numpy as np
import pytest

PAGES, PAGE_SIZE, HEADS, DIM = 7, 4, 2, 16


def rotated(x, cos, sin, interleaved=False):
    """x [rows, heads, d], cos and sin [rows, rot / 2]; in fp32, each operation rounded for itself."""
    pairs = cos.shape[1]
    first = np.arange(pairs) * 2 if interleaved else np.arange(pairs)
    second = first + 1 if interleaved else first + pairs
    out = x.copy()
    a, b, cos, sin = x[..., first], x[..., second], cos[:, None], sin[:, None]
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def empty_caches():
    return np.zeros((2, PAGES, PAGE_SIZE, HEADS, DIM), np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
def test_slots_and_rotary_embedding(interleaved):
    k, v, q = drawn(5, HEADS, DIM), drawn(5, HEADS, DIM, seed=1), drawn(5, 4, DIM)
    k_cache, v_cache = empty_caches()
    slots = np.array([9, -1, 0, 27, 14])
    positions = np.array([3, 0, 9, 1, 3])
    cos, sin = drawn(10, 4), drawn(10, 4, seed=2)
    out = foveal.append(
        k, v, k_cache, v_cache, slot_mapping=slots, cos=cos, sin=sin, positions=positions, q=q, interleaved=interleaved
    )
    np.testing.assert_array_equal(out, rotated(q, cos[positions], sin[positions], interleaved))
    expected_k, expected_v = empty_caches()
    stored = slots >= 0
    expected_k.reshape(-1, HEADS, DIM)[slots[stored]] = rotated(k, cos[positions], sin[positions], interleaved)[stored]
    expected_v.reshape(-1, HEADS, DIM)[slots[stored]] = v[stored]
    np.testing.assert_array_equal(k_cache, expected_k)
    np.testing.assert_array_equal(v_cache, expected_v)


def test_behind_the_lengths():
    k, v = drawn(2, 3, HEADS, DIM), drawn(2, 3, HEADS, DIM, seed=1)
    k_cache, v_cache = empty_caches()
    table = np.array([[5, 2, 99], [1, 6, 0]], np.uint32)
    lengths = np.array([2, 6], np.int32)
    options = {"cache_lengths": lengths, "block_table": table, "k_scale": np.full(1, 2, np.float32)}
    assert foveal.append(k, v, k_cache, v_cache, **options) is None
    for i in range(2):
        for n in range(3):
            page, row = table[i, (lengths[i] + n) // PAGE_SIZE], (lengths[i] + n) % PAGE_SIZE
            np.testing.assert_array_equal(k_cache[page, row], k[i, n] / 2)
            np.testing.assert_array_equal(v_cache[page, row], v[i, n])
    assert np.count_nonzero(k_cache.any(axis=(2, 3))) == 6


def test_refusals_name_the_argument():
    k, (k_cache, v_cache) = drawn(5, HEADS, DIM), empty_caches()
    with pytest.raises(foveal.InvalidArgument, match=r"slot_mapping\[4\] is 28"):
        foveal.append(k, k, k_cache, v_cache, slot_mapping=np.arange(24, 29))
    with pytest.raises(foveal.InvalidArgument, match=r"slot_mapping.dtype is i32"):
        foveal.append(k, k, k_cache, v_cache, slot_mapping=np.arange(5, dtype=np.int32))
    with pytest.raises(foveal.InvalidArgument, match="v_cache is absent"):
        foveal.append(k, k, k_cache, None, slot_mapping=np.arange(5))
    with pytest.raises(foveal.InvalidArgument, match="k_cache is read-only"):
        k_cache.flags.writeable = False
        foveal.append(k, k, k_cache, v_cache, slot_mapping=np.arange(5))
    with pytest.raises(TypeError, match="interleaved is 1"):
        foveal.append(k, k, k_cache, v_cache, slot_mapping=np.arange(5), interleaved=1)


def call(append, k, q, k_cache, v_cache, slots, cos):
    out = append(k, k, k_cache, v_cache, slot_mapping=slots, cos=cos, sin=cos, positions=slots.clamp(0, 9), q=q)
    append(k, None, v_cache, None, slot_mapping=slots + 1)
    return out, k_cache, v_cache


def test_torch_operators(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    import foveal.torch

    def inputs():
        arrays = (drawn(5, HEADS, DIM), drawn(5, 4, DIM), *empty_caches(), np.array([9, 21, 0, 26, 14]), drawn(10, 8))
        return [torch.from_numpy(array).to(device) for array in arrays]

    compiled = torch.compile(lambda *given: call(foveal.torch.append, *given), fullgraph=True, backend="aot_eager")
    for a, b in zip(call(foveal.append, *inputs()), compiled(*inputs()), strict=True):
        assert torch.equal(a, b) and a.any()

    def traced(k, cache, slots):
        cache = cache.clone()
        foveal.append(k, None, cache, None, slot_mapping=slots)
        return cache

    k, cache = torch.from_numpy(drawn(5, HEADS, DIM)).to(device), torch.from_numpy(empty_caches()[0]).to(device)
    slots = torch.tensor([9, -1, 0, 27, 14], device=device)
    graph = torch.fx.experimental.proxy_tensor.make_fx(traced)(k, cache, slots)
    other = torch.tensor([1, 2, 3, 4, 5], device=device)
    assert torch.equal(graph(k, cache, other), traced(k, cache, other))
    torch.library.opcheck(torch.ops.foveal.append, (k, None, cache, None), {"slot_mapping": slots})


def test_torch_counts_the_write(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    k, cache = torch.ones(1, HEADS, DIM, device=device), torch.zeros(PAGES, PAGE_SIZE, HEADS, DIM, device=device)
    slots = torch.tensor([3], device=device)
    version = cache._version
    foveal.append(k, None, cache, None, slot_mapping=slots)
    assert cache._version > version
    with pytest.raises(foveal.UnsupportedError, match="k requires a gradient"):
        foveal.append(k.requires_grad_(), None, cache, None, slot_mapping=slots)
