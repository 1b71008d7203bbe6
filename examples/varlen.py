"""foveal.attention_varlen: sequences of 3, 0 and 5 rows, one after the other, each attending to itself."""

import foveal
import numpy as np

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((8, heads, 16), dtype=np.float32) for heads in (4, 2, 2))  # [total, heads, d]
offsets = np.array([0, 3, 3, 8], np.int32)
out = foveal.attention_varlen(q, k, v, offsets, offsets, causal=True)

alone = foveal.attention(q[None, 3:], k[None, 3:], v[None, 3:], causal=True)[0]
print(out.shape, bool((out[3:] == alone).all()))
