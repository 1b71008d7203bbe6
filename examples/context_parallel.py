"""One attention layer over ranks: each process has its rows of one long sequence; the rows' results are those of one
process that had them all. Here the ranks are processes on this machine, over gloo; on GPUs, one a process, over NCCL.
Forward only: gradients do not travel over ranks yet.
"""

import os
import socket

import foveal
import foveal.parallel
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS, LENGTH, WIDTH, HEADS = 2, 300, 64, 4


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in self.qkv(x).chunk(3, -1))
        return q, k.contiguous(), v.contiguous()  # k and v are sent as they lie: without gaps

    def forward(self, x: torch.Tensor, lengths: list[int] | None = None) -> torch.Tensor:
        q, k, v = self.heads(x)
        if lengths is None:
            attended = foveal.attention(q, k, v, causal=True)
        else:
            attended = foveal.parallel.attention(q, k, v, causal=True, lengths=lengths)
        result: torch.Tensor = self.out(attended.flatten(-2))
        return result


def run(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(0)  # the same layer and sequence everywhere
    layer, x = Attention(), torch.randn(1, LENGTH, WIDTH)
    spans = foveal.parallel.spans([LENGTH], RANKS)
    with torch.no_grad():
        own = layer(foveal.parallel.take(x, spans, rank, [LENGTH]), [LENGTH])
        expected = foveal.parallel.take(layer(x), spans, rank, [LENGTH])
    torch.testing.assert_close(own, expected)
    print(f"rank {rank}: rows {foveal.parallel.positions(spans, rank)[[0, -1]].tolist()}, as one process has them")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port,), RANKS)  # type: ignore[attr-defined, no-untyped-call]
