"""FlashAttention's functions by their own names, with what FlashAttention-2 and -3 place differently by keyword."""

import torch
from foveal.compat.flash_attn import flash_attn_func, flash_attn_qkvpacked_func

qkv = torch.randn(2, 20, 3, 4, 32)  # [b, s, 3, heads, d]
packed: torch.Tensor = flash_attn_qkvpacked_func(qkv, causal=True, window_size=(8, 0))
out, lse = flash_attn_func(*qkv.unbind(2), causal=True, window_size=(8, 0), return_attn_probs=True)
print(torch.equal(packed, out), tuple(lse.shape))
