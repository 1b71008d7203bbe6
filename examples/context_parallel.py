"""Trains one attention layer over ranks: each process has its rows of one long sequence, and all together make the
steps that one process would make that had them all. Here the ranks are processes on this machine, over gloo.
"""

import os
import socket

import foveal
import foveal.parallel
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS, LENGTH, WIDTH, HEADS, STEPS = 2, 300, 64, 4, 10


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, lengths: list[int] | None = None) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in self.qkv(x).chunk(3, -1))
        if lengths is None:
            attended = foveal.attention(q, k, v, causal=True)
        else:  # k and v are sent as they lie: without gaps
            attended = foveal.parallel.attention(q, k.contiguous(), v.contiguous(), causal=True, lengths=lengths)
        result: torch.Tensor = self.out(attended.flatten(-2))
        return result


def train(x: torch.Tensor, target: torch.Tensor, lengths: list[int] | None = None) -> list[float]:
    """The loss of each step, on all rows. lengths: x is this rank's rows of a sequence that is so long."""
    torch.manual_seed(0)  # the same layer everywhere
    layer = Attention()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(STEPS):
        loss = (layer(x, lengths) - target).square().sum() / (LENGTH * WIDTH)
        optimizer.zero_grad()
        loss.backward()
        total = loss.detach()
        if lengths is not None:  # the layer's weights are on all ranks: their gradients are sums, as the loss is
            for tensor in (total, *(p.grad for p in layer.parameters() if p.grad is not None)):
                dist.all_reduce(tensor)
        optimizer.step()
        losses.append(total.item())
    return losses


def run(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    x, target = torch.randn(2, 1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    spans = foveal.parallel.spans([LENGTH], RANKS)
    own = [foveal.parallel.take(t, spans, rank, [LENGTH]) for t in (x, target)]
    losses, expected = train(own[0], own[1], [LENGTH]), train(x, target)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    print(f"rank {rank}: loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps, as one process has it")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run, (port,), RANKS)  # type: ignore[attr-defined, no-untyped-call]
