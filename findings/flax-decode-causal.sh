#!/bin/sh
# Flax's MultiHeadAttention sees the first token alone when it decodes with its cache and is_causal=True.
#
# Versions:  flax 0.12.8 with jax and jaxlib 0.10.2 (PyPI), on the CPU. Seen on 2026-12-01.
# Input:     nnx.MultiHeadAttention of two heads and six tokens: one call with is_causal=True; the same layer a token at a time with
#            decode=True after init_cache(), with is_causal=True as before and without it. Also with dropout_rate=0.1 and
#            deterministic=True, and with sow_weights=True, which take another way through the code.
# Behaviour: is_causal is said to overlay a causal mask. Without it decoding agrees with the one call to rounding. With it
#            all steps but the first differ, by up to 1.9 here: the mask is the top-left triangle of one query against all
#            places of the cache, so that each step's output is the projected value of token 0, whatever was read
#            since. No error and no warning; the call that is right for training is wrong with decode=True set.
#            The other ways give the same.
#
# Needs python3 with pip and PyPI (about 250 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" flax==0.12.8 \
    jax==0.10.2 jaxlib==0.10.2 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import jax
import numpy
from flax import nnx

x = jax.random.normal(jax.random.key(1), (1, 6, 8))
same = True
for name, settings, arguments in (
    ("plain", {}, {}),
    ("dropout_rate=0.1", {"dropout_rate": 0.1}, {"deterministic": True}),
    ("sow_weights=True", {}, {"sow_weights": True}),
):
    layer = nnx.MultiHeadAttention(num_heads=2, in_features=8, qkv_features=8, decode=False, rngs=nnx.Rngs(0), **settings)

    def steps(is_causal):
        layer.init_cache((1, 6, 8))
        calls = [layer(x[:, i : i + 1], decode=True, is_causal=is_causal, **arguments) for i in range(6)]
        return numpy.concatenate(calls, 1)[0]

    whole = numpy.asarray(layer(x, is_causal=True, **arguments))[0]
    first = numpy.asarray(layer.out(layer.value(x[:, :1])))[0]  # what token 0 alone would give
    offs = {is_causal: abs(steps(is_causal) - whole).max(-1) for is_causal in (False, True)}
    alone = abs(steps(True) - first).max()
    print(f"{name}: without is_causal off by {offs[False].max():.1g}; with it by", *offs[True].astype(float).round(2).tolist(), end=" ")
    print(f"(from token 0's value by {alone:.1g})")
    same = same and offs[False].max() < 1e-5 and offs[True][0] < 1e-5 and offs[True][1:].min() > 0.1 and alone < 1e-5
sys.exit(not same)
END
JAX_PLATFORMS=cpu PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: with is_causal=True Flax's MultiHeadAttention decodes from token 0 alone"
