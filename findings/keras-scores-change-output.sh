#!/bin/sh
# Keras' MultiHeadAttention gives another output when it is asked for its scores too, or has dropout, in rows without keys.
#
# Versions:  keras 3.15.1 with jax 0.10.2 as its backend (PyPI), on the CPU. Seen on 2026-11-29.
# Input:     MultiHeadAttention(2, 4) of four tokens with an attention_mask that hides every key of token 1, once as it is,
#            once with return_attention_scores=True, once with the same weights in a layer of dropout=0.1, not training; the same of
#            GroupQueryAttention(4, 2, 1); keras.layers.Attention with such a mask.
# Behaviour: as it is, token 1 gets what the mean of all values gives, masked ones too. With scores, and with dropout though
#            it is not in use, it gets zeros (scores of 0 that sum to no 1), off by 0.79 and 0.65. The other tokens are
#            equal. So a look at the scores shows none of what the layer does without the look, and dropout=0.1 in
#            a model's configuration moves its predictions. keras.layers.Attention gives the mean in both cases.
#
# Needs python3 with pip and PyPI (about 160 MB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" keras==3.15.1 \
    jax==0.10.2 jaxlib==0.10.2 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import keras
import numpy

keras.utils.set_random_seed(0)
x = numpy.random.default_rng(0).standard_normal((1, 4, 8), dtype=numpy.float32)
mask = numpy.ones((1, 4, 4), bool)
mask[0, 1] = False
same = True
for layer, arguments in ((keras.layers.MultiHeadAttention, (2, 4)), (keras.layers.GroupQueryAttention, (4, 2, 1))):
    plain, dropping = layer(*arguments), layer(*arguments, dropout=0.1)
    outputs = {"plain": plain(x, x, attention_mask=mask, training=False)}
    outputs["with scores"], scores = plain(x, x, attention_mask=mask, return_attention_scores=True, training=False)
    dropping(x, x)  # makes its weights
    dropping.set_weights(plain.get_weights())
    outputs["with dropout"] = dropping(x, x, attention_mask=mask, training=False)
    outputs = {name: numpy.asarray(output)[0] for name, output in outputs.items()}
    total = float(numpy.asarray(scores)[0, 0, 1].sum())
    print(f"{layer.__name__}: the scores of token 1 sum to {total}")
    same = same and total == 0
    for name in ("with scores", "with dropout"):
        off = abs(outputs[name] - outputs["plain"]).max(-1)
        others = numpy.delete(off, 1).max()
        zeros = not outputs[name][1].any()
        print(f"  {name}: token 1 is off by {off[1]:.2g}, all zeros: {zeros}; other tokens by {others:.1g}")
        same = same and off[1] > 0.3 and zeros and others < 1e-5
hidden = [None, numpy.zeros((1, 4), bool)]
out, scores = keras.layers.Attention()([x, x], mask=hidden, return_attention_scores=True)
print("Attention: scores", *numpy.asarray(scores)[0, 1].tolist())
same = same and numpy.allclose(scores, 0.25) and numpy.allclose(out, x.mean(1), atol=1e-5)
sys.exit(not same)
END
KERAS_BACKEND=jax JAX_PLATFORMS=cpu KERAS_HOME=$scratch/keras PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" \
    2>"$scratch/log" || { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: a row without keys is zeros with scores or dropout and the mean of V without"
