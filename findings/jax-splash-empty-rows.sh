#!/bin/sh
# A row without keys of JAX's splash attention is the mean of as many rows of V as a block has, hidden ones too, or NaN.
#
# Versions:  jax 0.10.2, jaxlib 0.10.2 (PyPI; 0.12.0.1, which needs Python 3.12, does the same), on the CPU: the kernel runs
#            with interpret=True. Seen on 2026-11-29.
# Input:     make_splash_mha_single_device of a causal mask over 512 tokens whose query 5 has a segment id that no key has (also:
#            whose first 128 rows hide every key), block_kv 128, 256 and 512. Row i of V is i throughout, so that an output of x
#            is the mean of the keys 0 to 2x.
# Behaviour: query 5 gets 63.5, 127.5 and 255.5: the mean of the keys 0 to 127, 255 and 511, by the block size alone, which
#            is a setting for speed. Keys after query 5, which causality hides, are in it. The residual that stands for
#            its log-sum-exp is -2.4e38, not -inf. If a whole block of queries has no keys, its rows are NaN. Rows that do
#            have keys do not depend on the block size. jax.nn.dot_product_attention gives such a row the mean of all V.
#
# Needs python3 with pip and PyPI (about 150 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" jax==0.10.2 \
    jaxlib==0.10.2 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import math
import sys

import numpy
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

S, D = 512, 128
random = numpy.random.default_rng(0)
q, k = (random.standard_normal((1, S, D), dtype=numpy.float32) / 10 for _ in range(2))
v = numpy.broadcast_to(numpy.arange(S, dtype=numpy.float32)[None, :, None], (1, S, D))
ones = numpy.ones(S, numpy.int32)
others = ones.copy()
others[5] = 2
segments = splash.SegmentIds(q=others, kv=ones)
block_of_none = numpy.tril(numpy.ones((S, S), bool))
block_of_none[:128] = False


def attention(mask, block_kv, segment_ids=None):
    sizes = splash.BlockSizes(block_q=128, block_kv=block_kv, block_kv_compute=block_kv)
    mask = masks.MultiHeadMask([mask])
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=True, save_residuals=True)
    out, (lse,) = kernel(q, k, v, segment_ids=segment_ids)
    return out[0, :, 0], lse[0]


same = True
seen = []
for block_kv, mean in ((128, 63.5), (256, 127.5), (512, 255.5)):
    out, lse = attention(masks.CausalMask((S, S)), block_kv, segments)
    none, _ = attention(masks.NumpyMask(block_of_none), block_kv)
    print(f"block_kv {block_kv}: query 5 {out[5]:.1f}, residual {lse[5]:.3g}; of a block without keys {none[5]:.1f}")
    same = same and abs(out[5] - mean) < 0.01 and -3e38 < lse[5] < -1e38 and math.isnan(none[5])
    seen.append(numpy.delete(out, 5))
differ = max(float(abs(x - seen[0]).max()) for x in seen)
print(f"other rows differ between the block sizes by {differ:.1g} at most")
sys.exit(not (same and differ < 1e-2))
END
PYTHONPATH=$scratch/packages JAX_PLATFORMS=cpu python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: a row without keys depends on the block size in splash attention"
