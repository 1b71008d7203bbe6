#!/bin/sh
# Making a bottom-right causal mask of xFormers local moves its diagonal to the top left.
#
# Versions:  xformers 0.0.35, torch 2.11.0 (PyPI), on the CPU (masks only: their materialize()). Seen on 2026-11-29.
# Input:     BlockDiagonalMask.from_seqlens([3], [5]).make_causal_from_bottomright(), three queries at the end of five keys,
#            and of that make_local_attention(2).
# Behaviour: the mask lets query 0 see the keys 0 1 2 and query 2 all five. A window of two keys would leave 1 2 and 3 4. The
#            result of make_local_attention(2) lets them see 0 and 1 2: it is a BlockDiagonalCausalLocalAttentionMask, which is
#            aligned to the top left; no error, no warning. Another method of the same object,
#            make_local_attention_from_bottomright(2), is what keeps the alignment. With equal lengths they do not differ.
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    xformers==0.0.35 >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

from xformers.ops.fmha.attn_bias import BlockDiagonalMask


def seen(mask):
    return [[key for key in range(5) if row[key] == 0] for row in mask.materialize((3, 5)).tolist()]


causal = BlockDiagonalMask.from_seqlens([3], [5]).make_causal_from_bottomright()
masks = {
    "make_causal_from_bottomright()": (causal, [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    "make_local_attention(2) of it": (causal.make_local_attention(2), [[0], [0, 1], [1, 2]]),
    "make_local_attention_from_bottomright(2) of it": (
        causal.make_local_attention_from_bottomright(2), [[1, 2], [2, 3], [3, 4]]
    ),
}  # fmt: skip
same = True
for name, (mask, expected) in masks.items():
    print(f"{name}, {type(mask).__name__}: the three queries see {seen(mask)}")
    same = same and seen(mask) == expected
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" 2>"$scratch/log" || { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: make_local_attention() of a bottom-right mask gives a top-left one"
