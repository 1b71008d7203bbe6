#!/bin/sh
# torch.compile's cache on disk keeps code with an operator's default arguments in it, and runs it when they have changed.
#
# Versions:  torch 2.11.0 (PyPI), on the CPU, with a C++ compiler for torch.compile. Seen on 2026-11-30.
# Input:     an operator of torch.library, total(Tensor x, float scale=1.0), called as total(x) in a compiled function by one
#            process; then, by another process with the same cache folder, the next version of the operator's package: the default
#            is 3.0 there. And a version that has an argument more at the end, then again the one that lacks it.
# Behaviour: Inductor writes all arguments of the call into its code, defaults included, and the key of its cache has the
#            operator's name but not its schema. So after an upgrade the compiled function goes on with the old default, silently:
#            16 where the uncompiled one gives 48. After a downgrade it raises "expected at most 1 argument(s) but received 2". The
#            cache lies in /tmp/torchinductor_USER, where it outlives a virtual environment and is shared among them.
#
# Needs python3 with pip, a C++ compiler and PyPI (about 3 GB). Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import sys

import torch

schema, implementation = sys.argv[1:]
library = torch.library.Library("shop", "DEF")
library.define(f"total({schema}) -> Tensor")
total = eval(f"lambda {implementation}")
library.impl("total", total, "CPU")
torch.library.register_fake("shop::total", lambda x, *options: x.new_empty(()))


def twice(x):
    return torch.ops.shop.total(x) * 2


try:
    print(twice(torch.ones(8)).item(), torch.compile(twice)(torch.ones(8)).item())
except RuntimeError as error:
    print("refused:", "expected at most 1 argument(s) but received 2" in str(error))
END
run() { PYTHONPATH=$scratch/packages TORCHINDUCTOR_CACHE_DIR=$scratch/$1 python3 "$scratch/finding.py" "$2" "$3" 2>>"$scratch/log"; }
first=$(run upgrade "Tensor x, float scale=1.0" "x, scale=1.0: x.sum() * scale")
second=$(run upgrade "Tensor x, float scale=3.0" "x, scale=3.0: x.sum() * scale")
fresh=$(run empty "Tensor x, float scale=3.0" "x, scale=3.0: x.sum() * scale")
run downgrade "Tensor x, float scale=1.0" "x, scale=1.0: x.sum() * scale" >/dev/null
older=$(run downgrade "Tensor x" "x: x.sum()")
echo "uncompiled and compiled: scale=1.0: $first; then scale=3.0: $second; the same with an empty cache: $fresh"
echo "then a version without the argument: $older"
[ "$first" = "16.0 16.0" ] && [ "$second" = "48.0 16.0" ] && [ "$fresh" = "48.0 48.0" ] && [ "$older" = "refused: True" ] ||
    { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: Inductor's cache does not look at an operator's schema"
