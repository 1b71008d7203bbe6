#!/bin/sh
# JAX's flash attention for TPUs multiplies the bias by the scale; jax.nn's attention adds it to the scaled scores.
#
# Versions:  jax 0.10.2, jaxlib 0.10.2 (PyPI; 0.12.0.1, which needs Python 3.12, does the same), on the CPU: the kernel runs
#            under force_tpu_interpret_mode(). Seen on 2026-11-29.
# Input:     jax.experimental.pallas.ops.tpu.flash_attention of random q, k, v [1, 1, 128, 128] f32 with a random bias `ab` and
#            sm_scale 128**-0.5; the same of jax.nn.dot_product_attention.
# Behaviour: the two differ by 0.9. They agree to 1e-6 if jax.nn's bias is multiplied by the scale first; the module's own
#            mha_reference does the same. So an ALiBi or relative position bias has, at head dimension 128, an eleventh of its
#            strength, and a finite mask of -1e2 becomes one of -9. No documentation says so; a
#            TODO in the source asks which it should be. The scale, left out, is 1 and not d**-0.5.
#
# Needs python3 with pip and PyPI (about 150 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" jax==0.10.2 \
    jaxlib==0.10.2 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import jax
import numpy
from jax.experimental.pallas import tpu
from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention, mha_reference

S = D = 128
SCALE = D**-0.5
random = numpy.random.default_rng(0)
q, k, v, bias = (random.standard_normal((1, 1, S, D), dtype=numpy.float32) for _ in range(4))


def plain(scale, bias=None):
    out = jax.nn.dot_product_attention(*(x.swapaxes(1, 2) for x in (q, k, v)), bias=bias, scale=scale)
    return out.swapaxes(1, 2)


def off(a, b):
    return float(abs(a - b).max())


with tpu.force_tpu_interpret_mode():
    kernel = flash_attention(q, k, v, ab=bias, sm_scale=SCALE)
    no_scale = flash_attention(q, k, v)
reference = mha_reference(q, k, v, bias, sm_scale=SCALE)
added, scaled = off(kernel, plain(SCALE, bias)), off(kernel, plain(SCALE, bias * SCALE))
own = off(reference, plain(SCALE, bias * SCALE))
one, usual = off(no_scale, plain(1.0)), off(no_scale, plain(SCALE))
print(f"the kernel against jax.nn: off by {added:.2g}, with a bias times the scale by {scaled:.1g} (its reference: {own:.1g})")
print(f"without sm_scale: off by {one:.1g} from scale 1, by {usual:.2g} from scale d**-0.5")
sys.exit(not (added > 0.1 and scaled < 1e-5 and own < 1e-5 and one < 1e-5 and usual > 0.1))
END
PYTHONPATH=$scratch/packages JAX_PLATFORMS=cpu python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: the bias of JAX's flash attention for TPUs is multiplied by the scale"
