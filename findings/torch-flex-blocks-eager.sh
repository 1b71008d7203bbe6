#!/bin/sh
# flex_attention of a BlockMask made from blocks is sparse when compiled and plain dense attention when not.
#
# Versions:  torch 2.11.0 (PyPI), on the CPU, with a C++ compiler for torch.compile. Seen on 2026-11-29.
# Input:     random q, k, v [1, 1, 256, 16]; BlockMask.from_kv_blocks of two rows of blocks of 128, each with its own block of
#            keys only and no mask_mod, as block-sparse attention (top-k blocks of keys per block of queries) makes it;
#            flex_attention with it as it is and under torch.compile.
# Behaviour: the blocks say which keys are read. Compiled, the result is that of attention within the blocks, to rounding.
#            Uncompiled, it is attention over all 256 keys: only mask_mod is applied there, and the blocks are not looked at; the
#            two results differ by 0.5. The warning of an uncompiled call speaks of a matrix of all scores. So
#            a reference in eager mode "disproves" a right kernel, and an eager run of a sparse model is another model.
#
# Needs python3 with pip, a C++ compiler and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys
import warnings

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

warnings.simplefilter("ignore")
torch.manual_seed(0)
q, k, v = (torch.randn(1, 1, 256, 16) for _ in range(3))
counts = torch.tensor([[[1, 1]]], dtype=torch.int32)
blocks = torch.tensor([[[[0, 1], [1, 0]]]], dtype=torch.int32)
mask = BlockMask.from_kv_blocks(counts, blocks, BLOCK_SIZE=128)
halves = [slice(0, 128), slice(128, 256)]
with torch.no_grad():
    dense = scaled_dot_product_attention(q, k, v)
    sparse = torch.cat([scaled_dot_product_attention(*(x[:, :, half] for x in (q, k, v))) for half in halves], dim=2)
    results = {
        "uncompiled": flex_attention(q, k, v, block_mask=mask),
        "compiled": torch.compile(flex_attention)(q, k, v, block_mask=mask),
    }
same = True
for name, (right, wrong) in {"uncompiled": (dense, sparse), "compiled": (sparse, dense)}.items():
    near, far = ((results[name] - x).abs().max().item() for x in (right, wrong))
    print(f"{name}: off by {near:.1g} from {'dense' if right is dense else 'sparse'} attention, by {far:.2g} from the other")
    same = same and near < 1e-5 and far > 0.1
sys.exit(not same)
END
export TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
PYTHONPATH=$scratch/packages python3 "$scratch/finding.py" 2>"$scratch/log" ||
    { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: flex_attention reads the blocks of a BlockMask only when compiled"
