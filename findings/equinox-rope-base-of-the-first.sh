#!/bin/sh
# Equinox rotates by the base of the first module that ran: theta of every later rotary embedding of that size is ignored.
#
# Versions:  equinox 0.13.8 with jax and jaxlib 0.10.2 (PyPI), on the CPU. Seen on 2026-12-01.
# Input:     two equinox.nn.RotaryPositionalEmbedding(8), of theta 10 000 and 1 000 000 (the local and global layers of Gemma 3), on
#            rows of ones, in one process: the first on 8 rows, the second on 8, the second on 16, the first on 8 again. Beside them
#            the rotation in float64.
# Behaviour: the module keeps its sines and cosines in a dictionary of the process, by size and type but not by theta, and makes
#            them anew when a longer sequence comes. So the second module on 8 rows is the first's rotation to the last bit, off
#            by 0.64 from its own. With 16 rows it is right, and from then on the first one, right before, is off by 0.64 on the
#            same input. Which theta holds follows from which module ran first, and which saw the longest sequence. A model of two
#            bases, two models in one process, or a checkpoint compared with another theta: none is an error or a warning.
#
# Needs python3 with pip and PyPI (about 160 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" equinox==0.13.8 \
    jax==0.10.2 jaxlib==0.10.2 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import equinox
import numpy

SIZE = 8
x = numpy.ones((16, SIZE), numpy.float32)


def rotated(x, theta):
    halves = numpy.split(x.astype(numpy.float64), 2, -1)
    angles = numpy.arange(len(x))[:, None] * theta ** -(numpy.arange(0, SIZE, 2) / SIZE)
    cos, sin = numpy.cos(angles), numpy.sin(angles)
    return numpy.concatenate([halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin], -1)


local, wide = (equinox.nn.RotaryPositionalEmbedding(SIZE, theta=theta) for theta in (1e4, 1e6))
same = True
first = numpy.asarray(local(x[:8]))
for name, module, rows, right in (
    ("10 000 on 8 rows", local, 8, True),
    ("1 000 000 on 8 rows", wide, 8, False),
    ("1 000 000 on 16 rows", wide, 16, True),
    ("10 000 on 8 rows again", local, 8, False),
):
    out = numpy.asarray(module(x[:rows]))
    off = {theta: abs(out - rotated(x[:rows], theta)).max() for theta in (1e4, 1e6)}
    print(f"theta {name}: off by {off[module.theta]:.2g} from its own rotation; from theta 1e4's by {off[1e4]:.2g}")
    same = same and (off[module.theta] < 1e-5) == right and (right or off[module.theta] > 0.5)
    if name == "1 000 000 on 8 rows":
        same = same and numpy.array_equal(out, first)
sys.exit(not same)
END
JAX_PLATFORMS=cpu PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: theta of a rotary embedding holds for those that run after it"
