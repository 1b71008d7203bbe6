#!/bin/sh
# jax.nn.dot_product_attention of JAX 0.5.0 and 0.7.1 takes local_window_size and, on the CPU, ignores it unless is_causal is set too.
#
# Versions:  jax and jaxlib 0.5.0 and 0.7.1, beside 0.10.2 (PyPI), on the CPU. Seen on 2026-11-29.
# Input:     eight random queries and keys of one head; V the unit matrix, so that a row of the output is its weights;
#            local_window_size=(2, 1): two keys to the left and one to the right; alone and with is_causal=True.
# Behaviour: keys that query 4 sees:
#
#                       local_window_size=(2, 1)    with is_causal=True
#              0.5.0    0 to 7                      2 to 4
#              0.7.1    0 to 7                      2 to 4
#              0.10.2   2 to 5                      2 to 4
#
#            No error and no warning in the older ones, whose documentation describes the window. A bidirectional model of windows
#            runs as one of full attention, and a reference made with it disproves a right kernel. Seen when the gradients of another
#            library were compared under both versions.
#
# Needs python3 with pip and PyPI (about 500 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/finding.py" <<'END'
import sys

import jax
import numpy

random = numpy.random.default_rng(0)
q, k = (random.standard_normal((1, 8, 1, 8), dtype=numpy.float32) for _ in range(2))
v = numpy.eye(8, dtype=numpy.float32)[None, :, None]
seen = []
for causal in (False, True):
    out = jax.nn.dot_product_attention(q, k, v, local_window_size=(2, 1), is_causal=causal)
    seen.append(numpy.flatnonzero(numpy.asarray(out)[0, 4, 0] > 1e-6).tolist())
    print(f"jax {jax.__version__}, is_causal={causal}: query 4 sees the keys {seen[-1]}")
ignored = [list(range(8)), [2, 3, 4]]
expected = {"0.5.0": ignored, "0.7.1": ignored, "0.10.2": [[2, 3, 4, 5], [2, 3, 4]]}
sys.exit(seen != expected[jax.__version__])
END
for version in 0.5.0 0.7.1 0.10.2; do
    python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/$version" "jax==$version" \
        "jaxlib==$version" >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install jax $version"; exit 1; }
    JAX_PLATFORMS=cpu PYTHONPATH=$scratch/$version python3 "$scratch/finding.py" 2>"$scratch/log" ||
        { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
done
echo "still so: JAX 0.5.0 and 0.7.1 leave a window without is_causal out"
