"""Keys in pages, offsets, trees and workspaces: foveal.attention and its kin, and the engines' own names for them."""

import foveal
import numpy as np
import pytest

USED = np.array([33, 1, 64, 17], np.int32)
PAGE, H_Q, H_K, D = 16, 4, 2, 16


def dense_inputs(s_q, s_k=64, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((4, s, h, D), np.float32) for s, h in ((s_q, H_Q), (s_k, H_K), (s_k, H_K))]


def pages_of(x, table):
    """[b, s, h, d] as [pages, PAGE, h, d]; what no key lies in is NaN."""
    pages = np.full((table.max() + 2, PAGE, *x.shape[2:]), np.nan, x.dtype)
    for i, length in enumerate(USED):
        for n in range(-(-length // PAGE)):
            rows = x[i, n * PAGE : min((n + 1) * PAGE, length)]
            pages[table[i, n], : len(rows)] = rows
    return pages


TABLE = np.random.default_rng(3).permutation(16).astype(np.int32).reshape(4, 4)


def table_with_garbage():
    table = TABLE.copy()
    for i, length in enumerate(USED):
        table[i, -(-length // PAGE) :] = [-1, 1 << 30, -7, 99][: 4 + -length // PAGE]
    return table


def listed():
    """(page_indptr, page_indices)"""
    counts = -(-USED // PAGE)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return indptr, np.concatenate([TABLE[i, :count] for i, count in enumerate(counts)]).astype(np.int32)


OPTIONS = [{}, {"causal": True}, {"window": (9, 0), "softcap": 5.0}, {"causal": True, "chunk": 20}]


@pytest.mark.parametrize("s_q", [1, 3, 30])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pages_are_what_they_hold(s_q, options):
    q, k, v = dense_inputs(s_q)
    options = {"seqused_k": USED, "return_lse": True, **options}
    expected = foveal.attention(q, k, v, **options)
    indptr, indices = listed()
    for where in (
        {"block_table": table_with_garbage()},
        {"block_table": table_with_garbage().view(np.uint32)},
        {"page_indptr": indptr, "page_indices": indices},
    ):
        out, lse = foveal.attention(q, pages_of(k, TABLE), pages_of(v, TABLE), **options, **where)
        assert (out == expected[0]).all() and (lse == expected[1]).all()


def test_heads_before_rows_and_one_pool():
    q, k, v = dense_inputs(2)
    expected = foveal.attention(q, k, v, seqused_k=USED)
    k, v = pages_of(k, TABLE), pages_of(v, TABLE)
    pool = np.stack([k, v], 1).transpose(0, 1, 3, 2, 4).copy()  # [pages, 2, h, PAGE, d]
    k, v = (pool[:, i].transpose(0, 2, 1, 3) for i in (0, 1))
    assert (foveal.attention(q, k, v, seqused_k=USED, block_table=TABLE) == expected).all()


def test_varlen_queries():
    q, k, v = dense_inputs(5)
    lengths = [5, 0, 2, 1]
    rows = np.concatenate([q[i, :n] for i, n in enumerate(lengths)])
    cu_q = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    options = {"seqused_k": USED, "causal": True}
    out = foveal.attention_varlen(rows, k, v, cu_q, None, **options)  # dense keys
    paged = foveal.attention_varlen(
        rows, pages_of(k, TABLE), pages_of(v, TABLE), cu_q, None, block_table=TABLE, **options
    )
    assert (out == paged).all()
    for i, n in enumerate(lengths):
        alone = foveal.attention(q[i : i + 1, :n], k[i : i + 1, : USED[i]], v[i : i + 1, : USED[i]], causal=True)
        assert (out[cu_q[i] : cu_q[i + 1]] == alone[0]).all()


def test_query_offset():
    q, k, v = dense_inputs(3)
    offsets = np.array([5, 0, 61, -2], np.int32)
    out = foveal.attention(q, k, v, query_offset=offsets, causal=True)
    mask = np.arange(64) <= np.arange(3)[:, None] + offsets[:, None, None]
    assert np.allclose(out, foveal.attention(q, k, v, mask=mask[:, None]), atol=1e-6)
    assert (out[3, :2] == 0).all()
    with pytest.raises(foveal.InvalidArgument, match="alignment is 1 beside query_offset"):
        foveal.attention(q, k, v, query_offset=offsets, align="top_left")


@pytest.mark.parametrize("dtype", [np.uint32, np.int32])
def test_tree(dtype):
    q, k, v = dense_inputs(3)
    tree = np.broadcast_to(np.array([0b001, 0b011, 0b101], dtype)[None, :, None], (4, 3, 1))
    out = foveal.attention(q, k, v, tree_mask=tree, causal=True)
    seen = np.ones((3, 64), bool)
    seen[:, 61:] = [[True, False, False], [True, True, False], [True, False, True]]
    assert np.allclose(out, foveal.attention(q, k, v, mask=seen), atol=1e-6)


def test_refusals():
    q, k, v = dense_inputs(3)
    paged_k, paged_v = pages_of(k, TABLE), pages_of(v, TABLE)
    wrong = TABLE.copy()
    wrong[2, 3] = 17
    with pytest.raises(foveal.InvalidArgument, match=r"block_table\[2, 3\] is 17.*17 pages"):
        foveal.attention(q, paged_k, paged_v, seqused_k=USED, block_table=wrong)
    with pytest.raises(foveal.InvalidArgument, match="seqused_k is absent"):
        foveal.attention(q, paged_k, paged_v, block_table=TABLE)
    with pytest.raises(foveal.InvalidArgument, match="page_indices is absent"):
        foveal.attention(q, paged_k, paged_v, seqused_k=USED, page_indptr=listed()[0])
    with pytest.raises(foveal.InvalidArgument, match=r"block_table.dtype is int64"):
        foveal.attention(q, paged_k, paged_v, seqused_k=USED, block_table=TABLE.astype(np.int64))
    with pytest.raises(TypeError, match="cu_seqlens_k is None"):
        foveal.attention_varlen(q[0], k[0], v[0], np.array([0, 3], np.int32), None)


def test_supports_and_plan():
    described = ((4, 1, 4, 64), "bfloat16"), ((17, 16, 2, 64), "bfloat16"), ((17, 16, 2, 64), "bfloat16")
    pages = {"block_table": ((4, 4), "int32"), "seqused_k": ((4,), "int32")}
    for backend in ("cpu", "sm90"):
        assert foveal.supports(*described, **pages, backend=backend)
    plan = foveal.plan(*described, **pages, backend="cpu")
    assert "17 pages of 16 rows" in plan.text and plan.workspace_bytes == 0


def test_workspace():
    q, k, v = dense_inputs(1)
    workspace = foveal.Workspace(1001, q)
    assert workspace.size == 1004 and (workspace.tensor == 0).all()
    assert (foveal.attention(q, k, v, workspace=workspace) == foveal.attention(q, k, v)).all()
    assert (foveal.attention(q, k, v, workspace=foveal.Workspace(0, q)) == foveal.attention(q, k, v)).all()
    with pytest.raises(foveal.InvalidArgument, match="workspace overlaps"):
        foveal.attention(q, k, v, workspace=k)
    with pytest.raises(foveal.InvalidArgument, match="workspace has gaps"):
        foveal.attention(q, k, v, workspace=np.zeros((8, 8), np.int32)[:, :4])
    for size in (-1, 2.5, True):
        with pytest.raises(ValueError, match="size is"):
            foveal.Workspace(size, q)
    with pytest.raises(TypeError, match="like is of type list"):
        foveal.Workspace(8, [])


# ---- PyTorch

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")


def torch_inputs(s_q):
    return [torch.from_numpy(x) for x in dense_inputs(s_q)]


def torch_pages(k, v):
    return [torch.from_numpy(pages_of(x.numpy(), TABLE)) for x in (k, v)]


def test_operators_and_compile():
    import foveal.torch

    q, k, v = torch_inputs(2)
    paged_k, paged_v = torch_pages(k, v)
    used, table = torch.from_numpy(USED), torch.from_numpy(TABLE)
    tree = torch.tensor([[1], [3]], dtype=torch.int32).expand(4, 2, 1)
    workspace = foveal.Workspace(64, q)
    expected = foveal.attention(q, k, v, seqused_k=used, tree_mask=tree, causal=True)
    options = {"seqused_k": used, "block_table": table, "tree_mask": tree, "causal": True}
    torch.library.opcheck(torch.ops.foveal.attention, (q, paged_k, paged_v), {**options, "workspace": workspace.tensor})
    cu_q = torch.tensor([0, 2, 4, 6, 8], dtype=torch.int32)
    options_varlen = {**options, "tree_mask": tree.reshape(8, 1)}
    arguments = (q.flatten(0, 1), paged_k, paged_v, cu_q, None)
    torch.library.opcheck(torch.ops.foveal.attention_varlen, arguments, options_varlen)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(q, k, v):
        dense = foveal.torch.attention(q, k, v, workspace=workspace, **options)
        return dense, foveal.torch.attention_varlen(q.flatten(0, 1), k, v, cu_q, None, **options_varlen)

    dense, varlen = both(q, paged_k, paged_v)
    assert torch.equal(dense, expected) and torch.equal(varlen, expected.flatten(0, 1))


# ---- FlashAttention's names


@pytest.mark.parametrize("form", ["rows", "rows by index", "pages"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_flash_attn_with_kvcache(form, causal, interleaved):
    from foveal.compat.flash_attn import flash_attn_with_kvcache

    q, k, v = torch_inputs(3)
    new_q, new_k, new_v = (torch.from_numpy(x) for x in dense_inputs(3, 3, seed=5))
    before = torch.tensor([20, 1, 61, 13], dtype=torch.int32)
    angles = torch.outer(torch.arange(64.0), 1e4 ** -(torch.arange(0, 8, 2) / 8))
    rotary = {"rotary_cos": angles.cos(), "rotary_sin": angles.sin()}

    where = {}
    cache_k, cache_v = k.clone(), v.clone()
    if form == "rows by index":
        rows = torch.tensor([3, 0, 4, 1], dtype=torch.int32)
        cache_k, cache_v = (torch.full((5, *x.shape[1:]), float("nan")).index_copy(0, rows.long(), x) for x in (k, v))
        where["cache_batch_idx"] = rows
    elif form == "pages":
        where["page_table"] = torch.from_numpy(TABLE)
        cache_k, cache_v = (torch.empty(17, PAGE, *x.shape[2:]).fill_(float("nan")) for x in (k, v))
        for i in range(4):
            cache_k[TABLE[i]], cache_v[TABLE[i]] = (x[i].unflatten(0, (4, PAGE)) for x in (k, v))

    options = {"causal": causal, "cache_seqlens": before, "rotary_interleaved": interleaved, **rotary, **where}
    out, lse = flash_attn_with_kvcache(new_q, cache_k, cache_v, new_k, new_v, **options, return_softmax_lse=True)

    def turned(x, position):  # [b, s, h, d] at positions [b, s]
        cos, sin = (angles[position].cos()[:, :, None], angles[position].sin()[:, :, None])
        parts = (x[..., 0:8:2], x[..., 1:8:2]) if interleaved else (x[..., :4], x[..., 4:8])
        a, b = parts[0] * cos - parts[1] * sin, parts[1] * cos + parts[0] * sin
        pair = torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1)
        return torch.cat([pair, x[..., 8:]], -1)

    position = before[:, None] + torch.arange(3)
    for i, length in enumerate(before.tolist()):
        k[i, length : length + 3] = turned(new_k, position)[i]
        v[i, length : length + 3] = new_v[i]
    new_q = turned(new_q, position if causal else before[:, None].expand(4, 3))
    expected = foveal.attention(new_q, k, v, seqused_k=before + 3, causal=causal, return_lse=True)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


def test_flash_attn_with_kvcache_of_ragged_rows():
    from foveal.compat.flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

    q, k, v = torch_inputs(2)
    lengths = torch.tensor([2, 0, 1, 2])
    rows = torch.cat([q[i, :n] for i, n in enumerate(lengths)])
    cu_q = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    paged = dict(zip(("k_cache", "v_cache"), torch_pages(k, v), strict=True))
    used, table = torch.from_numpy(USED), torch.from_numpy(TABLE)
    expected = foveal.attention_varlen(rows, k, v, cu_q, None, seqused_k=used, causal=True)
    options = {"cu_seqlens_q": cu_q, "cache_seqlens": used, "page_table": table, "causal": True}
    assert torch.equal(flash_attn_with_kvcache(rows, **paged, **options), expected)
    cu_k = torch.nn.functional.pad(used.cumsum(0), (1, 0)).int()
    assert torch.equal(
        flash_attn_varlen_func(rows, *paged.values(), cu_q, cu_k, causal=True, block_table=table), expected
    )


def test_flash_attn_with_kvcache_refuses_by_name():
    from foveal.compat.flash_attn import flash_attn_with_kvcache

    q, k, v = torch_inputs(1)
    for name, value in {"qv": q, "cache_leftpad": q, "num_splits": 4, "sm_margin": 1}.items():
        with pytest.raises(foveal.UnsupportedError, match=name):
            flash_attn_with_kvcache(q, k, v, **{name: value})
    with pytest.raises(foveal.InvalidArgument, match="cache_seqlens is None beside page_table"):
        flash_attn_with_kvcache(q, k, v, page_table=torch.from_numpy(TABLE))
    with pytest.raises(foveal.InvalidArgument, match="rotary_cos or rotary_sin is given without"):
        flash_attn_with_kvcache(q, k, v, rotary_cos=q, rotary_sin=q)
    with pytest.raises(foveal.InvalidArgument, match="one of k and v is None"):
        flash_attn_with_kvcache(q, k, v, k)
    assert torch.equal(flash_attn_with_kvcache(q, k, v, cache_seqlens=9), foveal.attention(q, k[:, :9], v[:, :9]))
    assert torch.equal(flash_attn_with_kvcache(q, k, v), foveal.attention(q, k, v))


# ---- FlashInfer's names


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("pool", [False, True])
def test_flashinfer(layout, pool):
    from foveal.compat import flashinfer

    q, k, v = torch_inputs(3)
    used = torch.from_numpy(USED)
    pages = torch_pages(k, v)
    if layout == "HND":
        pages = [x.transpose(1, 2).contiguous() for x in pages]
    cache = torch.stack(pages, 1) if pool else tuple(pages)
    indptr, indices = (torch.from_numpy(x) for x in listed())
    last = (used - 1) % PAGE + 1

    decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(torch.empty(8), layout)
    decode.plan(indptr, indices, last, H_Q, H_K, D, PAGE, window_left=9, logits_soft_cap=5.0, sm_scale=0.3)
    out, lse = decode.run(q[:, 0], cache, return_lse=True)
    options = {"window": (9, None), "softcap": 5.0, "scale": 0.3, "seqused_k": used, "return_lse": True}
    expected, expected_lse = foveal.attention(q[:, :1], k, v, **options)
    assert torch.equal(out, expected[:, 0]) and torch.allclose(lse, expected_lse[:, :, 0] / np.log(2))
    assert torch.equal(decode.forward(q[:, 0], cache), out)

    prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(torch.empty(8), layout)
    cu_q = torch.tensor([0, 3, 6, 9, 12], dtype=torch.int32)
    prefill.plan(cu_q, indptr, indices, last, H_Q, H_K, D, PAGE, causal=True)
    out, lse = prefill.run(q.flatten(0, 1), cache, return_lse=True)
    expected, expected_lse = foveal.attention(q, k, v, seqused_k=used, causal=True, return_lse=True)
    assert torch.equal(out, expected.flatten(0, 1))
    assert torch.allclose(lse, expected_lse.transpose(1, 2).flatten(0, 1) / np.log(2))
    with pytest.raises(foveal.UnsupportedError, match="custom_mask"):
        prefill.plan(cu_q, indptr, indices, last, H_Q, H_K, D, PAGE, custom_mask=torch.ones(4))
    with pytest.raises(foveal.UnsupportedError, match="prefix_len_ptr"):
        prefill.plan(cu_q, indptr, indices, last, H_Q, H_K, D, PAGE, prefix_len_ptr=torch.zeros(4))
    with pytest.raises(foveal.UnsupportedError, match="window_left"):
        decode.run(q[:, 0], cache, window_left=3)
    with pytest.raises(foveal.UnsupportedError, match="jit_args"):
        flashinfer.BatchDecodeWithPagedKVCacheWrapper(torch.empty(8), layout, jit_args=["another variant"])
    decode.run(q[:, 0], cache, enable_pdl=True)
    with pytest.raises(foveal.UnsupportedError, match="k_scale"):
        decode.run(q[:, 0], cache, k_scale=2.0)
    with pytest.raises(foveal.InvalidArgument, match="page_size"):
        decode.plan(indptr, indices, last, H_Q, H_K, D, 8)
        decode.run(q[:, 0], cache)
