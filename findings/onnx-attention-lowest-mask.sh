#!/bin/sh
# A row that a mask of the lowest finite number covers is empty for onnxruntime's Attention and the mean of V for ONNX's own.
#
# Versions:  onnx 1.23.2 (its reference implementation), onnxruntime 1.32.0 (PyPI), on the CPU. Seen on 2026-11-29.
# Input:     a model of one Attention node, opset 23, f32; attn_mask is 0 but for one row of the lowest finite number, which is
#            what exporters write for a padded token. V is the unit matrix, so that a row of the output is its weights.
# Behaviour: the specification adds the mask to the scores. The reference gives this row weights of 0.2 for each of five keys,
#            their mean; onnxruntime gives zeros, which sum to no 1. Other rows agree. With -1e38, which is hardly greater, both
#            give the mean again. (A boolean mask, and -inf, give zeros in both.)
#
# Needs python3 with pip and PyPI (about 60 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" onnx==1.23.2 \
    onnxruntime==1.32.0 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import numpy
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

shapes = {"Q": [1, 1, 3, 8], "K": [1, 1, 5, 8], "V": [1, 1, 5, 5], "attn_mask": [3, 5]}
inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
graph = helper.make_graph([helper.make_node("Attention", list(shapes), ["Y"])], "attention", inputs, outputs)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
reference = ReferenceEvaluator(model)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
random = numpy.random.default_rng(0)
same = True
lowest = float(numpy.finfo(numpy.float32).min)
for value, ours, theirs in ((lowest, 0.2, 0.0), (-1e38, 0.2, 0.2), (-numpy.inf, 0.0, 0.0)):
    feeds = {name: random.standard_normal(shape, dtype=numpy.float32) for name, shape in shapes.items()}
    feeds["V"] = numpy.eye(5, dtype=numpy.float32)[None, None]
    feeds["attn_mask"] = numpy.zeros((3, 5), numpy.float32)
    feeds["attn_mask"][1] = value
    (expected,), (out,) = reference.run(None, feeds), session.run(None, feeds)
    print(f"a row of {value:.9g}: onnx {expected[0, 0, 1]}, onnxruntime {out[0, 0, 1]}")
    same = same and numpy.allclose(expected[0, 0, 1], ours) and numpy.allclose(out[0, 0, 1], theirs)
    same = same and numpy.allclose(expected[0, 0, ::2], out[0, 0, ::2], atol=1e-6)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: onnxruntime's Attention takes a row of the lowest finite number for an empty one, onnx's reference does not"
