#!/bin/sh
# run.sh NVCC GATE: the gate lets a clean kernel through and stops one that spills and one whose wgmma is serialised.
set -u
nvcc=$1
gate=$2
sources=$(dirname "$0")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

compile() { # compile NAME: under the gate, as foveal_gate_ptxas() does
    "$gate" "$nvcc" -std=c++20 -gencode=arch=compute_90a,code=sm_90a -Xptxas=-v,-warn-spills \
        -c "$sources/$1.cu" -o "$scratch/$1.o" 2>"$scratch/$1.log"
}

fail() {
    echo "FAILED: $*"
    cat "$scratch"/*.log
    exit 1
}

compile clean || fail "a clean kernel does not pass"
[ -s "$scratch/clean.o" ] || fail "a clean kernel leaves no object"
grep -q "Used [0-9]* registers" "$scratch/clean.o.ptxas" || fail "no resource report beside the object"

for offender in spill serialised_wgmma; do
    compile "$offender" && fail "$offender passes"
    grep -q "^ptxas gate:" "$scratch/$offender.log" || fail "$offender fails, but not at the gate"
    [ ! -e "$scratch/$offender.o" ] || fail "$offender leaves its object behind"
done
grep -Eq "[1-9][0-9]* bytes spill" "$scratch/spill.log" || fail "the spill is not reported"
grep -q "(C75" "$scratch/serialised_wgmma.log" || fail "the serialised wgmma is not reported"
echo "clean passes; spill and serialised wgmma are stopped"
