"""foveal in place of torch.nn.functional.scaled_dot_product_attention, for a model that calls that."""

import torch
from foveal.compat.torch import fallbacks, sdpa, sdpa_replaced

layer = torch.nn.MultiheadAttention(64, 4, batch_first=True)
x = torch.randn(2, 10, 64)
with torch.no_grad(), sdpa_replaced():
    out, _ = layer(x, x, x, need_weights=False)
print(out.shape, fallbacks())

# Called by itself: heads before rows, a padding mask for each sequence.
q, k, v = (torch.randn(2, 4, 10, 16) for _ in range(3))
mask = torch.arange(10) < torch.tensor([10, 7])[:, None]
direct: torch.Tensor = sdpa(q, k, v, mask[:, None, None, :].repeat(1, 1, 10, 1))
print(direct.shape)
