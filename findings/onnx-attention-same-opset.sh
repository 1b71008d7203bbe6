#!/bin/sh
# One model of ONNX's Attention, opset 23 or 24, means other things by release: heads, empty rows, softcap and diagonal moved.
#
# Versions:  onnx 1.18.0, 1.21.0 and 1.23.2 (their reference implementation), onnxruntime 1.26.0 and 1.28.0 (PyPI), on the CPU.
#            Seen on 2026-11-29.
# Input:     four models of one Attention node, V the unit matrix or one that tells the heads apart: 4 heads of Q on 2 of K and
#            V; a boolean mask that hides every key of a row; softcap 1 and a mask of one -inf; opset 24, is_causal, three
#            queries on a cache of five keys of which nonpad_kv_seqlen says that four count.
# Behaviour:                        heads of V  empty row  the -inf key    last query sees
#              onnx 1.18.0          0 1 0 1     NaN        is seen (0.09)  (no opset 24)
#              onnx 1.21.0          0 0 1 1     NaN        is seen (0.09)  keys 0 to 2
#              onnx 1.23.2          0 0 1 1     zeros      is hidden       keys 0 to 3
#              onnxruntime 1.26.0   0 0 1 1     mean of V  is seen (0.09)  keys 0 to 2
#              onnxruntime 1.28.0   0 0 1 1     zeros      is hidden       keys 0 to 3
#
#            The operator's version, which is to change with its meaning, stayed at 23 and 24, so neither the model nor
#            a check of its opset tells which is meant. softcap after the mask turns its -inf into -1.
#
# Needs python3 with pip and PyPI (about 150 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/finding.py" <<'END'
import sys

import numpy
import onnx
from onnx import TensorProto, helper

name, version = sys.argv[1:]
if name == "onnxruntime":
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
else:
    from onnx.reference import ReferenceEvaluator
random = numpy.random.default_rng(0)


def run(opset, inputs, **settings):
    feeds = {key: array for key, array in inputs.items() if array is not None}
    infos = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in feeds.items()]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    node = helper.make_node("Attention", [key if key in feeds else "" for key in inputs], ["Y"], **settings)
    graph = helper.make_graph([node], "attention", infos, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=opset - 13)
    if name == "onnx":
        return ReferenceEvaluator(model).run(None, feeds)[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def tensors(heads=1, kv_heads=1, queries=3, keys=5):
    q, k = (random.standard_normal((1, h, n, 8), dtype=numpy.float32) for h, n in ((heads, queries), (kv_heads, keys)))
    return {"Q": q, "K": k, "V": numpy.eye(keys, dtype=numpy.float32)[None, None]}


def last_seen():
    if (name, version) == ("onnx", "1.18.0"):
        return None
    cache = {**tensors(), "mask": None, "past_key": None, "past_value": None, "nonpad": numpy.array([4], numpy.int64)}
    return int(numpy.flatnonzero(run(24, cache, is_causal=1)[0, 0, -1] > 0)[-1])


grouped = tensors(4, 2)
grouped["V"] = numpy.zeros((1, 2, 5, 2), numpy.float32)
grouped["V"][0, 0, :, 0] = grouped["V"][0, 1, :, 1] = 1
heads = run(23, grouped)[0, :, 0].argmax(-1).tolist()
hidden = numpy.ones((3, 5), bool)
hidden[1] = False
with numpy.errstate(all="ignore"):
    row = run(23, {**tensors(), "mask": hidden})[0, 0, 1]
empty = "NaN" if numpy.isnan(row).all() else {0: "zeros", 0.2: "mean"}.get(round(float(row.max()), 6))
leak = numpy.zeros((3, 5), numpy.float32)
leak[1, 2] = -numpy.inf
leaks = bool(run(23, {**tensors(), "mask": leak}, softcap=1.0)[0, 0, 1, 2] > 0.01)
seen = heads, empty, leaks, last_seen()
print(f"{name} {version}: heads of V {heads}, empty row {empty}, a key of -inf is seen: {leaks}, last key seen: {seen[3]}")
expected = {
    ("onnx", "1.18.0"): ([0, 1, 0, 1], "NaN", True, None),
    ("onnx", "1.21.0"): ([0, 0, 1, 1], "NaN", True, 2),
    ("onnx", "1.23.2"): ([0, 0, 1, 1], "zeros", False, 3),
    ("onnxruntime", "1.26.0"): ([0, 0, 1, 1], "mean", True, 2),
    ("onnxruntime", "1.28.0"): ([0, 0, 1, 1], "zeros", False, 3),
}
sys.exit(seen != expected[name, version])
END
for package in onnx==1.18.0 onnx==1.21.0 onnx==1.23.2 onnxruntime==1.26.0 onnxruntime==1.28.0; do
    name=${package%==*}
    maker=$package # what writes the model
    [ "$name" = onnx ] || maker=onnx==1.23.2
    python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/$package" "$package" "$maker" \
        >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install $package"; exit 1; }
    PYTHONPATH=$scratch/$package python3 "$scratch/finding.py" "$name" "${package#*==}" ||
        { echo "CHANGED: see the lines before"; exit 1; }
done
echo "still so: Attention of opset 23 and 24 means other things by release"
