#!/bin/sh
# onnxruntime 1.24 sees one key less than 1.23 in a window of GroupQueryAttention: the same model gives other results.
#
# Versions:  onnxruntime 1.23.2 and 1.24.1, onnx 1.23.2, numpy 2.4.4 (PyPI), on the CPU. Seen on 2026-11-29.
# Input:     a model of one node, com.microsoft.GroupQueryAttention with local_window_size 3; a prompt of 8 tokens, one head,
#            V the unit matrix, so that the output's row i is the weights of query i.
# Behaviour: query 7 sees, by version,
#
#              1.23.2: keys 4 5 6 7 (the window counts the keys before the query)
#              1.24.1: keys   5 6 7 (the window counts the query itself)
#
#            without an error or a warning; nothing in the model tells which is meant.
#
# Needs python3 with pip and PyPI (about 100 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/finding.py" <<'END'
import sys

import numpy
import onnxruntime
from onnx import TensorProto, helper

TOKENS, WINDOW = 8, 3
names = ["query", "key", "value", "", "", "seqlens_k", "total_sequence_length"]
node = helper.make_node("GroupQueryAttention", names, ["out", "present_key", "present_value"], domain="com.microsoft",
                        num_heads=1, kv_num_heads=1, local_window_size=WINDOW)  # fmt: skip
types = {"query": TensorProto.FLOAT, "key": TensorProto.FLOAT, "value": TensorProto.FLOAT,
         "seqlens_k": TensorProto.INT32, "total_sequence_length": TensorProto.INT32}  # fmt: skip
shapes = {"seqlens_k": [1], "total_sequence_length": [1]}
inputs = [helper.make_tensor_value_info(n, types[n], shapes.get(n, [1, TOKENS, TOKENS])) for n in names if n]
outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("out", "present_key", "present_value")]
opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(helper.make_graph([node], "window", inputs, outputs), opset_imports=opsets, ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
q, k = numpy.random.default_rng(0).standard_normal((2, 1, TOKENS, TOKENS), dtype=numpy.float32)
out = session.run(["out"], {
    "query": q, "key": k, "value": numpy.eye(TOKENS, dtype=numpy.float32)[None],
    "seqlens_k": numpy.array([TOKENS - 1], numpy.int32), "total_sequence_length": numpy.array([TOKENS], numpy.int32),
})[0]  # fmt: skip
seen = [int(key) for key in numpy.flatnonzero(out[0, -1] > 0)]
print(f"onnxruntime {onnxruntime.__version__}: query {TOKENS - 1} sees the keys {seen}")
expected = {"1.23.2": [4, 5, 6, 7], "1.24.1": [5, 6, 7]}
sys.exit(seen != expected[onnxruntime.__version__])
END
for version in 1.23.2 1.24.1; do
    python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/$version" \
        "onnxruntime==$version" onnx==1.23.2 numpy==2.4.4 >"$scratch/log" 2>&1 ||
        { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
    PYTHONPATH=$scratch/$version python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
done
echo "still so: local_window_size 3 is four keys in onnxruntime 1.23.2 and three in 1.24.1"
