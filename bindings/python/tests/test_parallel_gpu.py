"""foveal.parallel on two GPUs: a process each, over the group's NCCL communicator. Skipped where there is one."""

import os

import foveal
import pytest

torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")

import foveal.parallel  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

RANKS = 2
METHODS = ("ring", "all_gather", "ulysses")
CASES = [
    dict(),
    dict(causal=True),
    dict(causal=True, sinks=True, softcap=30.0),
    dict(window=(511, 0), placement="contiguous"),
    dict(chunk=512, causal=True),
]


def draw(seed, shape, heads_k, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(seed)
    heads = (shape[-2], heads_k, heads_k)
    return [torch.randn(*shape[:-2], h, shape[-1], generator=generator, device="cuda", dtype=dtype) for h in heads]


def error(out, expected):
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()


def check_attention(rank):
    """As near to the f32 result on the CPU as one GPU is."""
    length, shape = 2999, (2, 2999, 4, 128)
    for number, case in enumerate(CASES):
        keywords = dict(case)
        placement = keywords.pop("placement", "zigzag")
        q, k, v = draw(number, shape, 2)
        on_cpu = dict(keywords)
        if keywords.pop("sinks", False):
            sinks = torch.linspace(-1, 1, 4, device="cuda")
            keywords["sinks"], on_cpu["sinks"] = sinks, sinks.cpu()
        exact, exact_lse = foveal.attention(*(t.float().cpu() for t in (q, k, v)), return_lse=True, **on_cpu)
        spans = foveal.parallel.spans([length], RANKS, placement)
        exact = foveal.parallel.take(exact, spans, rank, [length])
        one = error(foveal.parallel.take(foveal.attention(q, k, v, **keywords).cpu(), spans, rank, [length]), exact)
        own = [foveal.parallel.take(t, spans, rank, [length]).contiguous() for t in (q, k, v)]
        for method in METHODS:
            out, lse = foveal.parallel.attention(
                *own, lengths=[length], placement=placement, method=method, return_lse=True, **keywords
            )
            two = error(out.cpu(), exact)
            assert two <= 1.1 * one, f"{case}, {method}: {two} where one GPU is off by {one}"
            expected = foveal.parallel.take(exact_lse, spans, rank, [length], dim=2)
            torch.testing.assert_close(lse.cpu(), expected, atol=2e-5, rtol=2e-5)


def check_packed(rank):
    """Documents that cross ranks."""
    lengths = [1500, 3, 0, 2000, 700]
    total = sum(lengths)
    q, k, v = draw(17, (total, 8, 128), 4)
    ends = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)
    exact = foveal.attention_varlen(
        *(t.float().cpu() for t in (q, k, v)), causal=True, cu_seqlens_q=ends, cu_seqlens_k=ends
    )
    ends = ends.cuda()
    whole = foveal.attention_varlen(q, k, v, causal=True, cu_seqlens_q=ends, cu_seqlens_k=ends).cpu()
    for placement in ("zigzag", "contiguous"):
        spans = foveal.parallel.spans(lengths, RANKS, placement)
        one, expected = (foveal.parallel.take(t, spans, rank, lengths, dim=0) for t in (whole, exact))
        own = [foveal.parallel.take(t, spans, rank, lengths, dim=0).contiguous() for t in (q, k, v)]
        for method in METHODS:
            out = foveal.parallel.attention(*own, lengths=lengths, placement=placement, method=method, causal=True)
            two, off = error(out.cpu(), expected), error(one, expected)
            assert two <= 1.1 * off, f"{placement}, {method}: {two} where one GPU is off by {off}"


def check_bits(rank):
    """The same in 100 calls, with other work in between."""
    own = draw(rank + 5, (1, 8192, 8, 128), 4)
    for method in METHODS:
        first = foveal.parallel.attention(*own, causal=True, method=method)
        for call in range(100):
            if call % 7 == rank:
                torch.mm(*(torch.randn(2048, 2048, device="cuda") for _ in range(2)))  # this rank is late
            assert torch.equal(foveal.parallel.attention(*own, causal=True, method=method), first), (method, call)


def check_decode(rank):
    """Caches whose keys lie in turn on both ranks."""
    lengths = torch.tensor([20000, 1, 777, 4096], dtype=torch.int32, device="cuda")
    q = draw(31, (4, 1, 32, 128), 8)[0]
    k, v = draw(32, (4, 20000, 8, 128), 8)[1:]
    exact = foveal.attention(*(t.float().cpu() for t in (q, k, v)), seqused_k=lengths.cpu(), return_lse=True)
    one = error(foveal.attention(q, k, v, seqused_k=lengths).cpu(), exact[0])
    for span in (1, 64):
        mine = (torch.arange(20000, device="cuda") // span) % RANKS == rank
        out, lse = foveal.parallel.decode(
            q, k[:, mine].contiguous(), v[:, mine].contiguous(), lengths=lengths, span=span, return_lse=True
        )
        two = error(out.cpu(), exact[0])
        print(f"decode, span {span}: off by {two:.2e}, one GPU by {one:.2e}", flush=True)
        assert two <= 1.5 * one
        torch.testing.assert_close(lse.cpu(), exact[1], atol=2e-5, rtol=2e-5)
        both = [torch.empty_like(out) for _ in range(RANKS)]
        dist.all_gather(both, out)
        assert torch.equal(both[0], both[1])


def check_refusals(rank):
    q, k, v = draw(1, (1, 256, 4, 64), 4)
    with pytest.raises(foveal.UnsupportedError, match="requires a gradient"):
        foveal.parallel.attention(q.requires_grad_(), k, v)


CHECKS = (check_attention, check_packed, check_bits, check_decode, check_refusals)


def work(rank, number, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=RANKS, device_id=torch.device("cuda", rank))
    CHECKS[number](rank)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("number", range(len(CHECKS)), ids=[check.__name__ for check in CHECKS])
def test_two_gpus(number):
    if torch.cuda.device_count() < RANKS:
        pytest.skip("SKIPPED: one GPU")
    mp.spawn(work, (number, 29600 + number), nprocs=RANKS)
