"""foveal.attention on NumPy arrays: causal, grouped heads, a window, the log-sum-exp, and parts that are merged."""

import foveal
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


q, k, v = normal(1, 64, 8, 32), normal(1, 64, 2, 32), normal(1, 64, 2, 32)  # [b, s, heads, d]
out: Array = foveal.attention(q, k, v, causal=True)
near: Array = foveal.attention(q, k, v, window=(16, 0))

# Two halves of the keys, merged, are all of the keys.
whole, lse = foveal.attention(q, k, v, return_lse=True)
halves = [foveal.attention(q, k[:, part], v[:, part], return_lse=True) for part in (slice(32), slice(32, None))]
merged, merged_lse = foveal.merge([half[0] for half in halves], [half[1] for half in halves])
print(out.shape, near.shape, float(abs(merged - whole).max()) < 1e-5, float(abs(merged_lse - lse).max()) < 1e-5)

# Beforehand, without tensors: would a Hopper GPU take it, and if not, why?
described = (1, 4096, 32, 100), "bfloat16"
answer: foveal.Support = foveal.supports(described, described, described, backend="sm90")
print(bool(answer), answer.reason)
