#!/bin/sh
# run.sh NVCC COMPARE: .ci/compare_machine_code finds a changed instruction and an added kernel, and takes no notice of
# another name.
set -u
nvcc=$1
compare=$2
sources=$(dirname "$0")

CUOBJDUMP=$(dirname "$nvcc")/cuobjdump
[ -x "$CUOBJDUMP" ] || CUOBJDUMP=$(command -v cuobjdump) || { echo "SKIPPED: there is no cuobjdump here"; exit 0; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "SKIPPED: there is no CPython 3.11 or newer here"; exit 0; }
export CUOBJDUMP

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

compile() { # compile OBJECT OPTION...
    object=$scratch/$1.cu.o
    shift
    "$nvcc" -std=c++20 -gencode=arch=compute_90a,code=sm_90a --compress-mode=size "$@" -c "$sources/kernels.cu" -o "$object" ||
        { echo "FAILED: $sources/kernels.cu does not compile with $*"; exit 1; }
}
expect() { # expect STATUS TEXT A B: comparing A with B exits so, and a line that it prints matches TEXT
    "$compare" "$scratch/$3.cu.o" "$scratch/$4.cu.o" --json "$scratch/summary.json" >"$scratch/log" 2>&1
    status=$?
    [ $status -eq "$1" ] && grep -q "$2" "$scratch/log" && return
    echo "FAILED: $3 against $4: exit status $status, not $1, or no line has '$2':"
    cat "$scratch/log"
    exit 1
}

compile first -DNAME=scale -DFACTOR=2
compile renamed -DNAME=multiply -DFACTOR=2
compile changed -DNAME=scale -DFACTOR=3
compile more -DNAME=scale -DFACTOR=2 -DEXTRA

expect 0 "^kernels: 2 in A, 2 in B; 2 have the same machine code" first first
expect 0 "^kernels: 2 in A, 2 in B; 2 have the same machine code" first renamed
expect 1 "^kernels: 2 in A, 2 in B; 1 have the same machine code" first changed
expect 1 "^only in B: negate" first more
grep -q '"differs": "only in b"' "$scratch/summary.json" || { echo "FAILED: the summary lacks the added kernel"; exit 1; }
expect 2 "does not contain\|nothing" first nothing
echo "changed code and added kernels are found; names do not matter"
