#!/bin/sh
# OpenVINO's FakeConvert to fp8 cuts off at the largest number and loses NaN; the Convert that it emulates gives NaN.
#
# Versions:  openvino 2026.4.1 (PyPI), on the CPU, x86-64. Seen on 2026-11-29.
# Input:     models of FakeConvert (scale 1) and of Convert to f8e4m3 and f8e5m2 and back, compiled for "CPU" with f32
#            inference; of 1.0625, 465, 1e9, -1e9, -inf and NaN.
# Behaviour:                      1.0625  465  1e9    -1e9    -inf    NaN
#
#              f8e4m3 FakeConvert  1       448  448    -448    -448    -448
#              f8e4m3 Convert      1       NaN  NaN    NaN     NaN     NaN
#              f8e5m2 FakeConvert  1       448  57344  -57344  -57344  -57344
#              f8e5m2 Convert      1       448  inf    -inf    -inf    NaN
#
#            Its specification defines FakeConvert by a Convert to the type and back. So the accuracy of a model under
#            FakeConvert says nothing about overflow in the fp8 model, and a NaN that comes in is hidden: it leaves as the
#            least number of the type.
#
# Needs python3 with pip and PyPI (about 100 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" openvino==2026.4.1 \
    >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import math
import sys

import numpy
import openvino
from openvino import opset13

NUMBERS = numpy.array([1.0625, 465, 1e9, -1e9, -math.inf, math.nan], numpy.float32)
expected = {
    ("f8e4m3", "FakeConvert"): [1, 448, 448, -448, -448, -448],
    ("f8e4m3", "Convert"): [1] + [math.nan] * 5,
    ("f8e5m2", "FakeConvert"): [1, 448, 57344, -57344, -57344, -57344],
    ("f8e5m2", "Convert"): [1, 448, math.inf, -math.inf, -math.inf, math.nan],
}
same = True
for (kind, name), wanted in expected.items():
    x = opset13.parameter([len(NUMBERS)], numpy.float32)
    if name == "Convert":
        out = opset13.convert(opset13.convert(x, kind), "f32")
    else:
        out = opset13.fake_convert(x, opset13.constant(numpy.float32(1)), destination_type=kind)
    model = openvino.Core().compile_model(openvino.Model([out], [x]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = model(NUMBERS)[0]
    print(f"{kind} {name}:", *seen.tolist())
    same = same and numpy.array_equal(seen, numpy.array(wanted, numpy.float32), equal_nan=True)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: FakeConvert cuts off where Convert gives NaN or infinity"
