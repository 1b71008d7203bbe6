#!/bin/sh
# Compiler launcher for nvcc: runs the command, and fails if ptxas reports a register spill or serialised wgmma.
# Needs -Xptxas=-v,-warn-spills on the command line. The report of each kernel's resources goes to <object>.ptxas;
# what else the compiler says is passed on.
set -u

report=/dev/null
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && report=$argument.ptxas
    previous=$argument
done

log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?

resources='^ptxas info|bytes stack frame, |^$'
grep -E "$resources" "$log" >"$report"
grep -Ev "$resources" "$log" >&2
[ "$status" -eq 0 ] || exit "$status"

# "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..." is an info line.
offences=$(grep -E '\(C75[0-9][0-9]\)|Potential Performance Loss|[1-9][0-9]* bytes spill (stores|loads)|Registers are spilled' "$log")
if [ -n "$offences" ]; then
    {
        echo "ptxas gate: a kernel spills registers or its wgmma is serialised; the build stops here."
        echo "$offences"
        grep -E "Compiling entry function|Function properties|Used [0-9]+ registers" "$log"
    } >&2
    # The object must not survive, or the next build would take it for good.
    [ "$report" = /dev/null ] || rm -f "${report%.ptxas}"
    exit 1
fi
