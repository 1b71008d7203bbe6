#!/bin/sh
# readme_examples.sh README FILE...: each file stands verbatim in a code block of the README.
set -u
readme=$1
shift
for file in "$@"; do
    # The text between "<!-- FILE -->" + fence and the closing fence.
    block=$(awk -v marker="<!-- examples/$(basename "$file") -->" '
        $0 == marker { found = 1; next }
        found && /^```/ { if (inside) exit; inside = 1; next }
        inside { print }' "$readme")
    [ -n "$block" ] || { echo "FAILED: README has no block marked examples/$(basename "$file")"; exit 1; }
    [ "$block" = "$(cat "$file")" ] && continue
    echo "FAILED: the README's block differs from $file:"
    printf '%s\n' "$block" | diff - "$file"
    exit 1
done
