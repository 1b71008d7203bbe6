#!/bin/sh
# safetensors 0.8.0 saves a transposed NumPy array with its elements in the wrong places; 0.7.0 saves it right.
#
# Versions:  safetensors 0.8.0 and 0.7.0 (PyPI), numpy 2.4.4. Seen on 2026-11-29.
# Input:     safetensors.numpy.save of the transpose of [[0, 1, 2], [3, 4, 5]], as a cache of K kept [d, keys] is, and load.
# Behaviour: the loaded array is, by version,
#
#              0.7.0: [[0, 3], [1, 4], [2, 5]]
#              0.8.0: [[0, 1], [2, 3], [4, 5]]: the shape of the transpose, the order in memory of the original
#
#            without an error or a warning. Its documentation asks for tensors that are "contiguous and dense", which
#            a transpose in Fortran's order is in NumPy's terms; safetensors.torch refuses a transpose by an error.
#            Known there since August 2026 (safetensors/safetensors, issue 825), with no release since.
#
# Needs python3 with pip and PyPI (about 20 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/finding.py" <<'END'
import sys

import numpy
import safetensors
from safetensors.numpy import load, save

keys = numpy.arange(6, dtype=numpy.float32).reshape(2, 3).T
loaded = load(save({"keys": keys}))["keys"].tolist()
print(f"safetensors {safetensors.__version__}: {keys.tolist()} is loaded as {loaded}")
expected = {"0.7.0": keys.tolist(), "0.8.0": [[0, 1], [2, 3], [4, 5]]}
sys.exit(loaded != expected[safetensors.__version__])
END
for version in 0.7.0 0.8.0; do
    python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/$version" \
        "safetensors==$version" numpy==2.4.4 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
    PYTHONPATH=$scratch/$version python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
done
echo "still so: safetensors 0.8.0 scrambles a transposed array"
