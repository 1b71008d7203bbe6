#!/bin/sh
# mlx-lm's rotating cache keeps the first keys for ever, but its mask hides them from every step of more than one token.
#
# Versions:  mlx-lm 0.32.2, mlx 0.32.4 with mlx-cpu 0.32.4 (PyPI), on the CPU, x86-64. Seen on 2026-11-29.
# Input:     RotatingKVCache(max_size=12, keep=4), what make_prompt_cache(model, max_kv_size=12) makes; 24 tokens in steps of one
#            and in steps of 8 and 12, with the mask of the cache's own make_mask(). V is the unit matrix: a row of the output is
#            its weights.
# Behaviour: token 23 sees, by the size of the steps,
#
#              1:  the keys 0 to 3 (the kept ones) and 16 to 23
#              8:  12 to 23
#              12: 12 to 23
#
#            The kept keys are among those that the cache returns in all three, but the mask of a longer step is that of a plain
#            window over their places. So a prompt's result depends on the size of its chunks, and attention sinks, for which
#            keys are kept, are missing while a long prompt is read and come back with the first generated token.
#
# Needs python3 with pip and PyPI (about 150 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" mlx-lm==0.32.2 \
    mlx==0.32.4 mlx-cpu==0.32.4 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import RotatingKVCache

TOKENS, D = 24, 64
mx.random.seed(0)
q, k = (mx.random.normal((1, 1, TOKENS, D)) for _ in range(2))
v = mx.eye(TOKENS, D)[None, None]
expected = {1: [0, 1, 2, 3, *range(16, 24)], 8: list(range(12, 24)), 12: list(range(12, 24))}
same = True
for step, wanted in expected.items():
    cache = RotatingKVCache(max_size=12, keep=4)
    for start in range(0, TOKENS, step):
        now = slice(start, start + step)
        mask = cache.make_mask(step)
        keys, values = cache.update_and_fetch(k[:, :, now], v[:, :, now])
        out = scaled_dot_product_attention(q[:, :, now], keys, values, cache, scale=D**-0.5, mask=mask)
    kept = mx.array_equal(keys[:, :, :4], k[:, :, :4]).item()
    seen = [key for key, weight in enumerate(out[0, 0, -1].tolist()) if weight > 0]
    print(f"steps of {step}: token {TOKENS - 1} sees {seen}; the kept keys are in the cache: {kept}")
    same = same and seen == wanted and kept
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: the kept keys are seen in steps of one token only"
