#!/bin/sh
# exported_symbols.sh LIBRARY HEADER...: the library exports exactly what the headers declare FOVEAL_API, nothing more.
set -u
exported=$(nm -D --defined-only "$1" | awk '{print $3}' | sort)
shift
declared=$(cat "$@" | grep '^FOVEAL_API' | sed -E 's/.*(foveal_[a-z0-9_]+)\(.*/\1/' | sort)
[ -n "$declared" ] || { echo "FAILED: no FOVEAL_API declaration found in $*"; exit 1; }
[ "$exported" = "$declared" ] && exit 0
echo "FAILED: exported and declared differ"
echo "exported:" $exported
echo "declared:" $declared
exit 1
