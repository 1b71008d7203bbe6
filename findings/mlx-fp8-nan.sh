#!/bin/sh
# MLX turns NaN into finite numbers when it converts to fp8, and a NaN in a group of mxfp8 or mxfp4 into 896 or 0 throughout.
#
# Versions:  mlx 0.32.4 with mlx-cpu 0.32.4 (PyPI), on the CPU, x86-64. Seen on 2026-11-29.
# Input:     mx.to_fp8 and mx.from_fp8 of NaN, infinities and 1e9; mx.quantize and mx.dequantize, mode "mxfp8" and "mxfp4", of
#            a group of 32 numbers: one NaN, else 1.
# Behaviour: e4m3 has a NaN (the codes 0x7f and 0xff, which from_fp8 reads as NaN), but to_fp8 writes 0x7e, 448, for NaN as
#            for infinity and for what is too large. So a NaN cannot be found behind the conversion. In a group the NaN makes
#            the shared scale wrong: all 32 numbers come back as 896 (mxfp8) or 0 (mxfp4), also those that were 1; 32 times
#            1 without a NaN comes back as 1. torch 2.11, jax 0.12 and ml_dtypes 0.6 keep NaN.
#
# Needs python3 with pip and PyPI (about 50 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" mlx==0.32.4 \
    mlx-cpu==0.32.4 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import math
import sys

import mlx.core as mx

codes = mx.to_fp8(mx.array([math.nan, math.inf, -math.inf, 1e9]))
numbers = mx.from_fp8(codes, dtype=mx.float32).tolist()
print("NaN, inf, -inf, 1e9 become", numbers, "by the codes", [hex(code) for code in codes.tolist()])
nans = mx.from_fp8(mx.array([0x7F, 0xFF], dtype=mx.uint8), dtype=mx.float32).tolist()
print("the codes 0x7f and 0xff are read as", nans)
same = numbers == [448, 448, -448, 448] and all(map(math.isnan, nans))
for mode, expected in (("mxfp8", 896), ("mxfp4", 0)):
    for first, wanted in ((1.0, 1.0), (math.nan, expected)):
        group = mx.array([[first] + [1.0] * 31])
        back = mx.dequantize(*mx.quantize(group, mode=mode, group_size=32), mode=mode, group_size=32)
        values = sorted(set(back.astype(mx.float32).tolist()[0]))
        print(f"{mode}: {first} and 31 times 1 come back as {values}")
        same = same and values == [wanted]
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: NaN becomes 448 in fp8, and spoils its group of mxfp8 and mxfp4 without a NaN left"
