#!/bin/sh
# local-attention's rotary embedding puts queries a window late, or two, where it looks forward: a token is nearest to a later one.
#
# Versions:  local-attention 1.11.2, einops 0.8.2, hyper-connections 0.4.11, numpy 2.4.4, torch 2.11.0 (PyPI), on the CPU. Seen
#            on 2026-12-01.
# Input:     LocalAttention(window_size=8, causal=False, dim=16), whose look_forward is 1 unless it is given, of 40 equal queries
#            and keys, so that the positions alone make the weights; V the unit matrix. look_forward 2 and causal=True too.
# Behaviour: rotary scores of equal vectors are largest at distance 0. The key with the largest weight lies, from the query,
#
#              causal                            at 0
#              look_forward 1 (the usual)        8 tokens ahead
#              look_forward 2                    16 tokens ahead
#
#            and the weights are those of queries at p + 8 and p + 16 to rounding. Keys are numbered from the start
#            of the first window that is looked at, queries as if their window were the last of those: it is so for causality
#            alone. So what is meant to favour near tokens favours those a window later, by the size of the
#            window, and a bidirectional model is not symmetric. A float64 computation of the same with right positions differs.
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    local-attention==1.11.2 einops==0.8.2 hyper-connections==0.4.11 numpy==2.4.4 >"$scratch/log" 2>&1 ||
    { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import numpy
import torch
from local_attention import LocalAttention

WINDOW, TOKENS, DIM = 8, 40, 16
vector = torch.full((DIM,), 2.0)
q = k = vector.expand(1, TOKENS, DIM).contiguous()
v = torch.eye(TOKENS)[None]


def weights(forward, late):
    """The same in float64, queries `late` positions after their own."""
    angle = numpy.arange(TOKENS + 2 * WINDOW + 1)[:, None] * 10000.0 ** (-numpy.arange(0, DIM, 2) / DIM)
    distance = numpy.cos(angle).sum(-1) * 8 / DIM**0.5  # of two vectors of twos: 4 + 4 for each pair of dimensions
    query, key = numpy.arange(TOKENS)[:, None], numpy.arange(TOKENS)
    away = key // WINDOW - query // WINDOW
    seen = (away >= -1) & (away <= forward) & ((forward > 0) | (key <= query))
    e = numpy.where(seen, numpy.exp(distance[abs(query + late - key)]), 0)
    return e / e.sum(-1, keepdims=True)


same = True
for name, forward, settings in (
    ("causal", 0, {"causal": True}),
    ("look_forward left out", 1, {}),
    ("look_forward 2", 2, {"look_forward": 2}),
):
    out = LocalAttention(window_size=WINDOW, dim=DIM, **settings)(q, k, v)[0].double().numpy()
    nearest = out[8:16].argmax(-1) - numpy.arange(8, 16)  # of queries that have all windows around them
    off = [abs(out - weights(forward, late)).max() for late in (0, WINDOW * forward)]
    print(f"{name}: largest weight at {nearest.tolist()}; off by {off[0]:.2g}, of queries {WINDOW * forward} late by {off[1]:.1g}")
    same = same and (nearest == WINDOW * forward).all() and off[1] < 1e-5 and (not forward or off[0] > 0.05)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: local-attention rotates queries as if the last window that they see were their own"
