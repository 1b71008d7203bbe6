#!/bin/sh
# PyTorch's attention with a mask and is_causal=True: an error or both apply, by shapes that have nothing to do with it.
#
# Versions:  torch 2.11.0 (PyPI), on the CPU. Seen on 2026-11-29.
# Input:     torch.nn.functional.scaled_dot_product_attention of random q, k, v [1, 2, 6, 16], a boolean attn_mask and
#            is_causal=True; the same with v of another head dimension, with tensors of three dimensions, with dropout, and
#            with a floating mask that requires a gradient.
# Behaviour: its documentation says that an error is thrown if both are set. In the first case none is: the result is that of
#            the mask and top-left causality together, to the last bit. In the others "Explicit attn_mask should not be set
#            when is_causal=True" is raised. Which kernel takes the call decides, and that follows from d_v, the number of
#            dimensions, dropout and gradients.
#
# Needs python3 with pip and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 2, 6, 16)
mask = torch.ones(6, 6, dtype=torch.bool)
mask[1:, 0] = False
both = scaled_dot_product_attention(q, k, v, attn_mask=mask.tril())
zeros = torch.zeros(6, 6, requires_grad=True)
cases = {
    "q, k, v [1, 2, 6, 16]": (False, (q, k, v, mask)),
    "v [1, 2, 6, 8]": (True, (q, k, v[..., :8], mask)),
    "q, k, v [2, 6, 16]": (True, (q[0], k[0], v[0], mask)),
    "dropout_p=0.1": (True, (q, k, v, mask, 0.1)),
    "a mask that requires a gradient": (True, (q, k, v, zeros)),
}
same = True
for name, (raises, arguments) in cases.items():
    try:
        out = scaled_dot_product_attention(*arguments, is_causal=True)
        print(f"{name}: computed, {'equal to' if torch.equal(out, both) else 'other than'} both together")
        same = same and not raises and torch.equal(out, both)
    except RuntimeError as error:
        print(f"{name}: {error}")
        same = same and raises and "should not be set when is_causal=True" in str(error)
sys.exit(not same)
END
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: attn_mask beside is_causal is honoured or refused by other arguments' shapes"
