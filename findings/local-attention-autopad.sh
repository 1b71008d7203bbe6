#!/bin/sh
# local-attention's autopad lets the zeros that it appends be seen as keys; a mask that hides nothing hides them.
#
# Versions:  local-attention 1.11.2, einops 0.8.2, hyper-connections 0.4.11, numpy 2.4.4, torch 2.11.0 (PyPI), on the CPU. Seen
#            on 2026-12-01.
# Input:     LocalAttention(window_size=8, causal=False, autopad=True) of 16, 13 and 9 random queries and keys, V of ones, so that an
#            output is the sum of the weights that real keys get; without a mask, and with mask=torch.ones(1, n).bool().
# Behaviour: weights sum to 1. The least sum, by the number of tokens,
#
#                                16      13      9
#              no mask           1       0.81    0.60
#              a mask of ones    1       1       1
#
#            Padding to a multiple of the window gives keys and values of zero: a score of 0, which is no small one, for a
#            value of nothing. So the outputs of all tokens in the last two windows shrink, most where the scores
#            are low and few tokens are left over, and depend on how many are missing. In float64 the sums are the
#            same with zeros as keys. With causal=True none is seen, since they come last.
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

torch.manual_seed(0)
WINDOW, DIM = 8, 16


def sums(q, k, padded):
    """What real keys get of each query's weights, in float64, with the zeros that fill the last window or without them."""
    tokens = len(q)
    size = -(-tokens // WINDOW) * WINDOW if padded else tokens
    k = numpy.concatenate([k, numpy.zeros((size - tokens, DIM))])
    away = numpy.arange(size) // WINDOW - numpy.arange(tokens)[:, None] // WINDOW
    e = numpy.where(abs(away) <= 1, numpy.exp(q @ k.T / DIM**0.5), 0)
    return e[:, :tokens].sum(-1) / e.sum(-1)


same = True
for tokens in (16, 13, 9):
    q, k, v = torch.randn(1, tokens, DIM), torch.randn(1, tokens, DIM), torch.ones(1, tokens, 1).expand(-1, -1, DIM)
    double = [t[0].double().numpy() for t in (q, k)]
    causal = LocalAttention(window_size=WINDOW, causal=True, autopad=True)(q, k, v)
    layer = LocalAttention(window_size=WINDOW, causal=False, autopad=True)
    out = layer(q, k, v)[0, :, 0].double().numpy()
    masked = layer(q, k, v, mask=torch.ones(1, tokens).bool())[0, :, 0].double().numpy()
    off = abs(out - sums(*double, True)).max()
    print(f"{tokens} tokens: least sum {out.min():.2f}, with a mask of ones {masked.min():.2f}; off float64 with zeros by {off:.1g}")
    same = same and off < 1e-5 and abs(masked - sums(*double, False)).max() < 1e-5 and (causal - 1).abs().max().item() < 1e-5
    same = same and (abs(out - 1).max() < 1e-5 if tokens == 16 else out.max() < 0.99)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: local-attention's padding is seen unless there is a mask"
