#!/bin/sh
# model_table.sh PARALLEL_MD PARALLEL_MODEL: the table of docs/parallel.md is what bench/parallel_model.cpp prints.
set -u
shown=$(sed -n '/^<!-- parallel_model -->$/,/^<!-- end -->$/p' "$1" | grep '^|')
printed=$("$2") || { echo "FAILED: $2"; exit 1; }
[ -n "$printed" ] && [ "$shown" = "$printed" ] && exit 0
echo "FAILED: $1 shows another table than $2 prints:"
echo "$printed"
exit 1
