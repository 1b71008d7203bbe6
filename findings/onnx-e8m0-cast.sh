#!/bin/sh
# A cast to float8e8m0, the scales of mxfp8 and mxfp4: ONNX's reference departs from its table; three libraries differ.
#
# Versions:  onnx 1.23.2 (its reference implementation), onnxruntime 1.32.0, ml_dtypes 0.6.0 (PyPI), on the CPU. Seen on
#            2026-11-29.
# Input:     models of Cast to FLOAT8E8M0 and back, opset 24, with the two settings that the operator's documentation tabulates,
#            saturate=1 round_mode="up" and saturate=0 round_mode="nearest"; numpy's astype(float8_e8m0fnu). Of 0 (the scale of
#            a block of zeros), infinity, 2**-130 and -3.
# Behaviour: the table says           0       inf    2**-130   -3
#              up, saturate           0 (*)   max    min       unspecified
#                onnx's reference     min     NaN    2**-126   4: as 3
#                onnxruntime          min     max    min       min
#              nearest, no saturate   NaN     NaN    NaN       unspecified
#                onnx's reference     min     NaN    min       4: as 3
#                onnxruntime          NaN     NaN    NaN       NaN
#              ml_dtypes              NaN     NaN    min       NaN
#
#            min is 2**-127, max 2**127. (*) The type has no zero. So the reference turns an overflowed scale into NaN where
#            the table saturates, gives twice the least number for less than that, and keeps a zero where the table has
#            NaN; a block of zeros is zeros or NaN by library; and only the reference hides a sign that was wrong.
#
# Needs python3 with pip and PyPI (about 60 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" onnx==1.23.2 \
    onnxruntime==1.32.0 ml_dtypes==0.6.0 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import math
import sys

import ml_dtypes
import numpy
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

NUMBERS = numpy.array([0, math.inf, 2**-130, -3], numpy.float32)
LEAST, MOST, NAN = 2.0**-127, 2.0**127, math.nan
UP, NEAREST = {"saturate": 1, "round_mode": "up"}, {"saturate": 0, "round_mode": "nearest"}


def by_onnx(settings, runs):
    there = helper.make_node("Cast", ["x"], ["scale"], to=TensorProto.FLOAT8E8M0, **settings)
    back = helper.make_node("Cast", ["scale"], ["y"], to=TensorProto.FLOAT)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(NUMBERS)]) for name in "xy"]
    graph = helper.make_graph([there, back], "cast", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return runs(model).run(None, {"x": NUMBERS})[0]


def ort(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


with numpy.errstate(all="ignore"):
    seen = {
        "up, saturate: onnx": (by_onnx(UP, ReferenceEvaluator), [LEAST, NAN, 2 * LEAST, 4]),
        "up, saturate: onnxruntime": (by_onnx(UP, ort), [LEAST, MOST, LEAST, LEAST]),
        "nearest, no saturate: onnx": (by_onnx(NEAREST, ReferenceEvaluator), [LEAST, NAN, LEAST, 4]),
        "nearest, no saturate: onnxruntime": (by_onnx(NEAREST, ort), [NAN, NAN, NAN, NAN]),
        "ml_dtypes": (NUMBERS.astype(ml_dtypes.float8_e8m0fnu).astype(numpy.float32), [NAN, NAN, LEAST, NAN]),
    }
same = True
for name, (numbers, expected) in seen.items():
    print(f"{name}:", *(f"{number:.6g}" for number in numbers))
    same = same and numpy.array_equal(numbers, numpy.array(expected, numpy.float32), equal_nan=True)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: zero, infinity, small and negative numbers become other scales by library"
