"""foveal.parallel over processes of gloo: every rank has its rows of what one process computes."""

import datetime
import os
import pathlib
import time

import foveal
import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal.parallel  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

CASES = [
    dict(causal=True, method="ring"),
    dict(causal=True, method="all_gather"),
    dict(causal=True, method="ulysses"),
    dict(window=(40, 0), placement="contiguous"),
    dict(softcap=20.0, chunk=64, causal=True),
    dict(causal=True, sinks=True, alibi_slopes=True, method="ring"),
    dict(mask=True),
    dict(bias=(2, 4, True, True), causal=True, method="ring"),
    dict(bias=(1, 4, False, True), window=(40, 0)),
    dict(bias=(1, 1, True, False)),
]
# Of a bias: its batch and heads, and whether queries and keys have values of their own.


def whole(generator, shape, heads_k):
    q = torch.randn(*shape, generator=generator)
    k, v = (torch.randn(*shape[:-2], heads_k, shape[-1], generator=generator) for _ in range(2))
    return q, k, v


def check_case(rank, ranks, options):
    options, placement = dict(options), options.get("placement", "zigzag")
    generator, length = torch.Generator().manual_seed(7), 301
    q, k, v = whole(generator, (2, length, 4, 32), 4 if options.get("method") == "ulysses" else 2)
    for name in ("sinks", "alibi_slopes"):
        if options.get(name):
            options[name] = torch.rand(4, generator=generator)
    spans = foveal.parallel.spans([length], ranks, placement)
    own = lambda t, dim=1: foveal.parallel.take(t, spans, rank, [length], dim)  # noqa: E731
    local = dict(options)
    if options.get("mask"):
        options["mask"] = torch.rand(2, 1, length, length, generator=generator) < 0.5
        local["mask"] = own(options["mask"], 2)
    if options.get("bias"):
        local["bias"] = options["bias"] = drawn_bias(generator, length, options["bias"])
        if options["bias"].shape[2] != 1:
            local["bias"] = own(options["bias"], 2)
    asked = {name: options[name] for name in options if name not in ("method", "placement")}
    expected, expected_lse = foveal.attention(q, k, v, return_lse=True, **asked)
    out, lse = foveal.parallel.attention(
        own(q), own(k).contiguous(), own(v).contiguous(), lengths=[length], return_lse=True, **local
    )
    torch.testing.assert_close(out, own(expected), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(lse, own(expected_lse, 2), atol=2e-5, rtol=2e-5)


def drawn_bias(generator, length, form):
    batch, heads, of_queries, of_keys = form
    shape = batch, heads, length if of_queries else 1, length if of_keys else 1
    return torch.randn(shape, generator=generator)


def check_gradients(rank, ranks, options, through_lse):
    """Each rank's part of the loss gives each rank's rows of the whole loss's gradients, and all of the heads'."""
    options, placement = dict(options), options.get("placement", "zigzag")
    generator, length = torch.Generator().manual_seed(9), 301
    inputs = list(whole(generator, (2, length, 4, 32), 4 if options.get("method") == "ulysses" else 2))
    dout = torch.randn(inputs[0].shape, generator=generator)
    dlse = torch.randn(2, 4, length, generator=generator)
    others = [name for name in ("sinks", "alibi_slopes", "bias") if options.get(name)]
    for name in others:
        of_bias = name == "bias"
        inputs.append(drawn_bias(generator, length, options["bias"]) if of_bias else torch.rand(4, generator=generator))
    spans = foveal.parallel.spans([length], ranks, placement)
    own = lambda t, dim=1: foveal.parallel.take(t, spans, rank, [length], dim)  # noqa: E731
    local = dict(options)
    if options.get("mask"):
        options["mask"] = torch.rand(2, 1, length, length, generator=generator) < 0.5
        local["mask"] = own(options["mask"], 2)
    asked = {name: options[name] for name in options if name not in ("method", "placement")}

    def gradients(attention, tensors, dout, dlse, keywords):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        keywords = {**keywords, **dict(zip(others, leaves[3:], strict=True))}
        out, lse = attention(*leaves[:3], return_lse=True, **keywords)
        loss = (out * dout).sum() + ((lse * dlse).sum() if through_lse else 0)
        return torch.autograd.grad(loss, leaves)

    def of_rank(i, t):
        """What of q, k, v and the others, or of their gradients, is this rank's."""
        if i < 3:
            return own(t)
        return own(t, 2) if others[i - 3] == "bias" and t.shape[2] != 1 else t

    expected = gradients(foveal.attention, inputs, dout, dlse, asked)
    local_inputs = [of_rank(i, t) for i, t in enumerate(inputs)]
    got = gradients(foveal.parallel.attention, local_inputs, own(dout), own(dlse, 2), {**local, "lengths": [length]})
    for i in range(len(inputs)):
        torch.testing.assert_close(got[i], of_rank(i, expected[i]), atol=2e-5, rtol=2e-5)


def check_documents(rank, ranks):
    """Packed documents, some of which cross ranks."""
    generator, lengths = torch.Generator().manual_seed(8), [90, 0, 150, 3]
    q, k, v = whole(generator, (sum(lengths), 4, 32), 2)
    ends = torch.tensor([0, 90, 90, 240, 243], dtype=torch.int32)
    expected = foveal.attention_varlen(q, k, v, ends, ends, causal=True)
    expected_gradients = torch.autograd.grad(
        (foveal.attention_varlen(*(leaves := [t.clone().requires_grad_() for t in (q, k, v)]), ends, ends, causal=True)
         * expected).sum(), leaves,
    )  # fmt: skip
    for placement in ("zigzag", "contiguous"):
        spans = foveal.parallel.spans(lengths, ranks, placement)
        own = [foveal.parallel.take(t, spans, rank, lengths, 0) for t in (q, k, v, expected)]
        out = foveal.parallel.attention(*own[:3], lengths=lengths, placement=placement, causal=True)
        torch.testing.assert_close(out, own[3], atol=2e-6, rtol=2e-5)
        rows = sum(rows for r, _, _, rows in spans if r == rank)
        assert foveal.parallel.positions(spans, rank).shape == (rows,) == out.shape[:1]
        leaves = [t.requires_grad_() for t in own[:3]]
        out = foveal.parallel.attention(*leaves, lengths=lengths, placement=placement, causal=True)
        assert out.requires_grad
        for got, of_all in zip(torch.autograd.grad(out, leaves, own[3]), expected_gradients, strict=True):
            rows = foveal.parallel.take(of_all, spans, rank, lengths, 0)
            torch.testing.assert_close(got, rows, atol=2e-5, rtol=2e-5)


def check_decode(rank, ranks):
    """Caches whose keys lie in turn on all ranks, in pages."""
    generator, lengths = torch.Generator().manual_seed(10), torch.tensor([200, 0, 17], dtype=torch.int32)
    q, k, v = (torch.randn(3, s, h, 32, generator=generator) for s, h in ((1, 4), (200, 2), (200, 2)))
    sinks, page = torch.rand(4, generator=generator), 8
    expected, expected_lse = foveal.attention(q, k, v, seqused_k=lengths, sinks=sinks, return_lse=True)
    for span in (1, 8, 5):
        own = [j for j in range(200) if j // span % ranks == rank]
        counted = torch.tensor([sum(j < length for j in own) for length in lengths], dtype=torch.int32)
        assert torch.equal(foveal.parallel.dealt_keys(lengths, span, rank, ranks), counted)
        per_sequence = -(-len(own) // page)
        table = torch.randperm(3 * per_sequence, generator=generator).to(torch.int32).view(3, per_sequence)
        caches = []
        for whole in (k, v):
            rows = torch.full((3, per_sequence * page, 2, 32), torch.nan)
            rows[:, : len(own)] = whole[:, own]
            cache = torch.full((3 * per_sequence, page, 2, 32), torch.nan)
            cache[table.long()] = rows.unflatten(1, (per_sequence, page))
            caches.append(cache)
        out, lse = foveal.parallel.decode(
            q, *caches, lengths=lengths, span=span, block_table=table, sinks=sinks, return_lse=True
        )
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(lse, expected_lse, atol=2e-5, rtol=2e-5)
    with pytest.raises(foveal.UnsupportedError, match="3 rows a sequence"):
        foveal.parallel.decode(torch.zeros(1, 3, 4, 32), k[:1], v[:1], lengths=lengths[:1])
    with pytest.raises(foveal.InvalidArgument, match="span is 0"):
        foveal.parallel.decode(q, k, v, lengths=lengths, span=0)
    with pytest.raises(foveal.UnsupportedError, match="gradient"):
        foveal.parallel.decode(q.clone().requires_grad_(), k, v, lengths=lengths)


def check_refusals():
    q = torch.randn(1, 10, 2, 32)
    with pytest.raises(foveal.InvalidArgument, match="method is"):
        foveal.parallel.attention(q, q, q, method="telepathy")
    with pytest.raises(foveal.InvalidArgument, match="forward.q has 10 rows; the spans of rank"):
        foveal.parallel.attention(q, q, q, lengths=[100])
    if dist.get_world_size() == 2:
        one, bias = torch.randn(1, 1, 2, 32), torch.zeros(1, 1, 1, 2, requires_grad=True)
        with pytest.raises(foveal.UnsupportedError, match="gradients.dbias is present and rank 0 has one row of q"):
            foveal.parallel.attention(one, one, one, bias=bias, causal=True).sum().backward()
    q.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiate twice"):
        out = foveal.parallel.attention(q, q, q)
        (dq,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        dq.sum().backward()
    with torch.no_grad():
        assert not foveal.parallel.attention(q, q, q).requires_grad


def agree(rank, ranks, port, folder):
    connect(rank, ranks, port)
    for options in CASES:
        check_case(rank, ranks, options)
        check_gradients(rank, ranks, options, through_lse=False)
        check_gradients(rank, ranks, options, through_lse=True)
    check_documents(rank, ranks)
    check_decode(rank, ranks)
    check_refusals()
    dist.barrier()
    dist.destroy_process_group()
    pathlib.Path(folder, str(rank)).touch()


def one_does_not_come(rank, ranks, port, folder):
    connect(rank, ranks, port)
    q = torch.randn(1, 100, 2, 32)
    if rank == 0:
        begin = time.monotonic()
        with pytest.raises(foveal.Error, match="exchange of rank 0"):
            foveal.parallel.attention(q, q, q, timeout_seconds=2)
        assert time.monotonic() - begin < 30
        with pytest.raises(foveal.Error, match="has been aborted"):
            foveal.parallel.attention(q, q, q, timeout_seconds=2)
        pathlib.Path(folder, "failed as it should").touch()
        os._exit(0)  # gloo would wait for its peer
    while not pathlib.Path(folder, "failed as it should").exists():
        time.sleep(0.1)
    os._exit(0)


def connect(rank, ranks, port):
    torch.set_num_threads(1)
    foveal.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=100))


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_agree_with_one_process(ranks, tmp_path):
    mp.spawn(agree, (ranks, free_port(), str(tmp_path)), ranks)
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(rank) for rank in range(ranks)]


def test_a_rank_that_does_not_come(tmp_path):
    mp.spawn(one_does_not_come, (2, free_port(), str(tmp_path)), 2)
    assert (tmp_path / "failed as it should").exists()


def test_plan_says_why():
    q, kv = ((1, 8192, heads, 128) for heads in (32, 8))
    described = [(q, "bfloat16"), (kv, "bfloat16"), (kv, "bfloat16")]
    text = foveal.parallel.plan(*described, rank=1, ranks=8, causal=True)
    assert "rank       1 of 8" in text and "all_gather" in text and "ulysses of 8" in text
    text = foveal.parallel.plan(*described, rank=1, ranks=8, causal=True, method="ring")
    assert "method     ring" in text and "all_gather" not in text


def test_spans():
    assert foveal.parallel.spans([8], 2) == [(0, 0, 0, 2), (0, 0, 6, 2), (1, 0, 2, 2), (1, 0, 4, 2)]
    assert foveal.parallel.spans([5, 3], 2, "contiguous") == [(0, 0, 0, 4), (1, 0, 4, 1), (1, 1, 0, 3)]
    with pytest.raises(foveal.InvalidArgument, match="placement is"):
        foveal.parallel.spans([8], 2, "anywhere")
