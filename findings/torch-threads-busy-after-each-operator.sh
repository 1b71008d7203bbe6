#!/bin/sh
# After each operator on the CPU, PyTorch's threads keep the CPUs busy for milliseconds with nothing.
#
# Versions:  torch 2.11.0 (PyPI's wheel for Linux on x86-64, which carries GNU's OpenMP). Seen on 2026-11-30, on two cores.
# Input:     torch.add of a matrix of 2048 x 2048 on two threads, then time.sleep(0.02); the process's CPU time during the sleep;
#            the same with OMP_WAIT_POLICY=passive in the environment.
# Behaviour: an operator's threads look for the next one instead of sleeping. Asleep, the process used 4 to 9 ms of CPU time after
#            each call, 0.05 to 0.09 ms with the variable. So a library with threads of its own (NumPy's OpenBLAS, a tokenizer, an
#            attention library) that is called between operators shares its CPUs with threads that do nothing: attention of 8 to
#            15 ms on two threads took 1.2 to 1.4 times as long, with samples that spread by 10 to 50 %, and nothing in a profile
#            of its own says why.
#
# Needs python3 with pip, PyPI (about 3 GB) and two CPUs. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
python3 -m pip install -q --disable-pip-version-check --only-binary=:all: --target "$scratch/packages" torch==2.11.0 \
    >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot install the packages"; exit 1; }
cat >"$scratch/finding.py" <<'END'
import time

import torch

torch.set_num_threads(2)
x = torch.randn(2048, 2048)
used = []
for _ in range(60):
    torch.add(x, 1.0)
    before = time.process_time()
    time.sleep(0.02)
    used.append(time.process_time() - before)
print(f"{sorted(used[10:])[25] * 1e6:.0f}")
END
run() { PYTHONPATH=$scratch/packages env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT -u OMP_NUM_THREADS "$@" python3 "$scratch/finding.py" 2>>"$scratch/log"; }
default=$(run)
passive=$(run OMP_WAIT_POLICY=passive)
echo "CPU time during a sleep of 20 ms after an operator: $default us; with OMP_WAIT_POLICY=passive: $passive us"
[ "$default" -gt 1000 ] && [ "$passive" -lt 500 ] || { cat "$scratch/log"; echo "CHANGED: see the line before"; exit 1; }
echo "still so: PyTorch's threads stay busy for milliseconds after an operator"
