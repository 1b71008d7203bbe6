#!/bin/sh
# MLX and gguf round ties of mxfp4 towards zero, the types of ml_dtypes to even; and MLX and gguf take other scales.
#
# Versions:  mlx 0.32.4 with mlx-cpu 0.32.4, gguf 0.19.0, ml_dtypes 0.6.0 (PyPI), on the CPU, x86-64. Seen on 2026-11-29.
# Input:     the seven numbers halfway between two of e2m1, in a block of 32 whose largest is 6, so that the scale is 1:
#            mx.quantize and mx.dequantize with mode "mxfp4" (and "nvfp4"), gguf.quants of MXFP4, and astype(float4_e2m1fn). Then blocks
#            whose largest number is 7 and 7.9, with a 4 beside it.
# Behaviour: 0.25 0.75 1.25 1.75 2.5 3.5 5 become
#
#              ml_dtypes: 0 1   1 2   2 4 4 (to even)
#              mlx, gguf: 0 0.5 1 1.5 2 3 4
#
#            With few bits such numbers are common, bf16 or integers most of all, and all that differ lose magnitude. A block
#            of 7 and 4 is 6 and 4 for both, but MLX's scale is 2 (7 is the tie of 6 and 8) and gguf's 1; 7.9 and 4 are 8 and 4
#            for MLX, 6 and 4 for gguf, which cuts off what passes 6. So neither reproduces the other's bytes.
#
# Needs python3 with pip and PyPI (about 70 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" mlx==0.32.4 \
    mlx-cpu==0.32.4 gguf==0.19.0 ml_dtypes==0.6.0 >"$scratch/log" 2>&1 ||
    { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import ml_dtypes
import mlx.core as mx
import numpy
from gguf import GGMLQuantizationType, quants

TIES = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]


def block(numbers, size=32):
    return numpy.array([numbers + [0] * (size - len(numbers))], numpy.float32)


def by_mlx(numbers, mode="mxfp4", size=32):
    codes, scales = mx.quantize(mx.array(block(numbers)), mode=mode, group_size=size)
    back = mx.dequantize(codes, scales, mode=mode, group_size=size).astype(mx.float32)
    return back.tolist()[0][: len(numbers)], scales.tolist()[0][0]


def by_gguf(numbers):
    codes = quants.quantize(block(numbers), GGMLQuantizationType.MXFP4)
    return quants.dequantize(codes, GGMLQuantizationType.MXFP4)[0, : len(numbers)].tolist(), int(codes[0, 0])


even = numpy.array(TIES, numpy.float32).astype(ml_dtypes.float4_e2m1fn).astype(numpy.float32).tolist()
ours, gguf, nv = (result[0][:-1] for result in (by_mlx([*TIES, 6.0]), by_gguf([*TIES, 6.0]), by_mlx([*TIES, 6.0], "nvfp4", 16)))
print("ties:     ", *TIES)
print("ml_dtypes:", *even)
print("mlx:      ", *ours, "(nvfp4:", *nv, end=")\n")
print("gguf:     ", *gguf)
same = even == [0, 1, 1, 2, 2, 4, 4] and ours == gguf == nv == [0, 0.5, 1, 1.5, 2, 3, 4]
expected = {7.0: (([6, 4], 128), ([6, 4], 127)), 7.9: (([8, 4], 128), ([6, 4], 127))}
for largest, wanted in expected.items():
    seen = by_mlx([largest, 4.0]), by_gguf([largest, 4.0])
    print(f"{largest} and 4, then the exponent of the scale plus 127: mlx {seen[0]}, gguf {seen[1]}")
    same = same and seen == wanted
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: MLX and gguf round ties of mxfp4 towards zero, and differ in their scales"
