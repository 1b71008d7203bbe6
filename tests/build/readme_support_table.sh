#!/bin/sh
# readme_support_table.sh README TOOL: the README's table is what `foveal info --markdown` prints.
set -u
begin='<!-- foveal info --markdown -->'
table=$(awk -v begin="$begin" '$0 == begin { inside = 1; next } inside && !/^\|/ { exit } inside { print }' "$1")
printed=$("$2" info --markdown) || { echo "FAILED: foveal info --markdown"; exit 1; }
[ -n "$table" ] || { echo "FAILED: README has no table behind $begin"; exit 1; }
[ "$table" = "$printed" ] && exit 0
echo "FAILED: the README's table is not what the tool prints:"
echo "$printed" >"${TMPDIR:-/tmp}/foveal_support.$$"
printf '%s\n' "$table" | diff - "${TMPDIR:-/tmp}/foveal_support.$$"
rm -f "${TMPDIR:-/tmp}/foveal_support.$$"
exit 1
