"""foveal.torch.attention inside torch.compile, in one graph, whatever the lengths."""

import torch
from foveal.torch import attention


def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = attention(q * 2, k, v, causal=True)
    return out + 1


compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
with torch.no_grad():
    for length in (16, 33):
        q, k, v = (torch.randn(2, length, heads, 32) for heads in (8, 2, 2))
        print(length, torch.equal(compiled(q, k, v), layer(q, k, v)))
