"""foveal.copy_pages and foveal.gather in NumPy, PyTorch and its operators. Every layout and bit: the C++ tests."""

import foveal
import numpy as np
import pytest

PAGES, PAGE_SIZE, HEADS, DIM, DIM_V = 8, 4, 2, 16, 8
TABLE = np.array([[5, 2, 99], [1, 6, 0], [3, -1, -1]], np.int32)
LENGTHS = (6, 11, 0)
ENDS = np.array([0, 6, 17, 17], np.int32)


def caches():
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((PAGES, PAGE_SIZE, HEADS, d), np.float32) for d in (DIM, DIM_V))


def rows_of(cache):
    """What gather must return."""
    return np.concatenate([cache[TABLE[i], :].reshape(-1, *cache.shape[2:])[:n] for i, n in enumerate(LENGTHS) if n])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_pages_are_copied(dtype):
    k_cache, v_cache = caches()
    expected = [cache.copy() for cache in (k_cache, v_cache)]
    pairs = np.array([[5, 0], [1, -1], [5, 7], [-1, 2]], dtype)
    assert foveal.copy_pages(k_cache, v_cache, pairs) is None
    for got, cache in zip((k_cache, v_cache), expected, strict=True):
        cache[[0, 7]] = cache[5]
        np.testing.assert_array_equal(got, cache)
    foveal.copy_pages(None, v_cache, pairs)
    np.testing.assert_array_equal(v_cache, expected[1])


def test_sequences_are_gathered():
    k_cache, v_cache = caches()
    table = np.where((TABLE < 0) | (TABLE > PAGES), 1 << 30, TABLE)
    indptr, indices = np.array([0, 2, 5, 5], np.int32), np.array([5, 2, 1, 6, 0], np.uint32)
    for pages in ({"block_table": table}, {"page_indptr": indptr, "page_indices": indices}):
        k, v = foveal.gather(k_cache, v_cache, ENDS, total_k=17, **pages)
        np.testing.assert_array_equal(k, rows_of(k_cache))
        np.testing.assert_array_equal(v, rows_of(v_cache))
    # Heads before rows; into the caller's memory; only a part of the rows.
    first = np.ascontiguousarray(k_cache.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    out, out_v = np.full((17, HEADS, DIM), 7, np.float32), np.full((17, HEADS, DIM_V), 7, np.float32)
    used = np.array([6, 3, 0], np.int32)
    got = foveal.gather(first, v_cache, ENDS, seqused_k=used, block_table=TABLE, k=out, v=out_v)
    assert got[0] is out and got[1] is out_v
    np.testing.assert_array_equal(out[:9], rows_of(k_cache)[:9])
    assert (out[9:] == 7).all() and (out_v[9:] == 7).all()
    k, v = foveal.gather(k_cache, v_cache, ENDS, total_k=17, seqused_k=used, block_table=TABLE)
    assert not k[9:].any() and not v[9:].any() and k[:9].all()


def test_what_is_gathered_is_what_attention_sees():
    k_cache, v_cache = caches()
    q = np.random.default_rng(1).standard_normal((3, 2 * HEADS, DIM), np.float32)
    ends_q, lengths = np.arange(4, dtype=np.int32), np.array(LENGTHS, np.int32)
    paged = foveal.attention_varlen(q, k_cache, v_cache, ends_q, None, seqused_k=lengths, block_table=TABLE)
    k, v = foveal.gather(k_cache, v_cache, ENDS, total_k=17, block_table=TABLE)
    np.testing.assert_array_equal(foveal.attention_varlen(q, k, v, ends_q, ENDS), paged)


def test_refusals_name_the_argument():
    k_cache, v_cache = caches()
    with pytest.raises(foveal.InvalidArgument, match=r"pairs\[0, 1\] is 8"):
        foveal.copy_pages(k_cache, v_cache, np.array([[0, 8]]))
    with pytest.raises(foveal.InvalidArgument, match=r"pairs\[1, 0\] is 3; another pair writes"):
        foveal.copy_pages(k_cache, v_cache, np.array([[0, 3], [3, 4]]))
    with pytest.raises(foveal.InvalidArgument, match="k_cache and v_cache are None"):
        foveal.copy_pages(None, None, np.array([[0, 1]]))
    with pytest.raises(foveal.InvalidArgument, match="block_table and page_indices are absent"):
        foveal.gather(k_cache, v_cache, ENDS, total_k=17)
    with pytest.raises(TypeError, match="k is None, and total_k"):
        foveal.gather(k_cache, v_cache, ENDS, block_table=TABLE)
    with pytest.raises(TypeError, match="v_cache is None"):
        foveal.gather(k_cache, None, ENDS, total_k=17, block_table=TABLE)
    with pytest.raises(foveal.InvalidArgument, match=r"cu_seqlens_k\[3\] is 17"):
        foveal.gather(k_cache, v_cache, ENDS, total_k=18, block_table=TABLE)
    with pytest.raises(foveal.InvalidArgument, match=r"block_table\[0, 1\] is 99"):
        foveal.gather(k_cache, v_cache, ENDS, total_k=17, block_table=np.where(TABLE == 2, 99, TABLE))
    with pytest.raises(foveal.InvalidArgument, match="k_cache is read-only"):
        k_cache.flags.writeable = False
        foveal.copy_pages(k_cache, v_cache, np.array([[0, 1]]))


def test_torch_operators(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    import foveal.torch

    def step(module, k_cache, v_cache, pairs, ends, table):
        module.copy_pages(k_cache, v_cache, pairs)
        return *module.gather(k_cache, v_cache, ends, total_k=17, block_table=table), k_cache, v_cache

    def inputs():
        table = np.where((TABLE < 0) | (TABLE > PAGES), 0, TABLE)
        arrays = (*caches(), np.array([[5, 0], [2, 7]]), ENDS, table)
        return [torch.from_numpy(array).to(device) for array in arrays]

    compiled = torch.compile(lambda *given: step(foveal.torch, *given), fullgraph=True, backend="aot_eager")
    for a, b in zip(step(foveal, *inputs()), compiled(*inputs()), strict=True):
        assert torch.equal(a, b) and a.any()

    def traced(k_cache, v_cache, pairs, ends, table):
        return step(foveal, k_cache.clone(), v_cache.clone(), pairs, ends, table)

    graph = torch.fx.experimental.proxy_tensor.make_fx(traced)(*inputs())
    for a, b in zip(graph(*inputs()), traced(*inputs()), strict=True):
        assert torch.equal(a, b)
    k_cache, v_cache, pairs, ends, table = inputs()
    torch.library.opcheck(torch.ops.foveal.copy_pages, (k_cache, None, pairs))
    torch.library.opcheck(torch.ops.foveal.gather, (k_cache, v_cache, ends, 17), {"block_table": table})


def test_torch_counts_the_write_and_has_no_derivative(device):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    k_cache, v_cache = (torch.from_numpy(cache).to(device) for cache in caches())
    pairs = torch.tensor([[0, 1]], device=device)
    version = k_cache._version
    foveal.copy_pages(k_cache, v_cache, pairs)
    assert k_cache._version > version
    with pytest.raises(foveal.UnsupportedError, match="v_cache requires a gradient"):
        foveal.copy_pages(k_cache, v_cache.clone().requires_grad_(), pairs)
