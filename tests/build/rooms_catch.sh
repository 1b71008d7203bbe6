#!/bin/sh
# rooms_catch.sh CHECK_ROOMS: an include from a lower room to a higher one, a circle and an unknown path are stopped.
set -u
check=$1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/src/problem" "$scratch/src/backend" "$scratch/src/cpu" "$scratch/src/sm90/forward" "$scratch/src/sm90/tile"
touch "$scratch/src/problem/mask.hpp" "$scratch/src/backend/plan.hpp" "$scratch/src/sm90/forward/tiles.hpp"

expect() { # expect pass|stop FILE INCLUDED...
    wanted=$1 file=$2
    shift 2
    for included in "$@"; do echo "#include \"$included\""; done >"$scratch/src/$file"
    if "$check" "$scratch" >"$scratch/log"; then verdict=pass; else verdict=stop; fi
    [ $verdict = "$wanted" ] || { echo "FAILED: $file including $* should $wanted"; cat "$scratch/log"; exit 1; }
    rm "$scratch/src/$file"
}

expect pass cpu/forward.cpp problem/mask.hpp backend/plan.hpp foveal/foveal.h
expect stop problem/forward.cpp backend/plan.hpp
expect stop cpu/forward.cpp sm90/forward/tiles.hpp
expect stop sm90/tile/product.cuh sm90/forward/tiles.hpp
expect stop cpu/forward.cpp mask.hpp
expect stop elsewhere.cpp problem/mask.hpp
echo '#include "problem/lengths.hpp"' >"$scratch/src/problem/mask.hpp"
expect stop problem/lengths.hpp problem/mask.hpp
echo "a wrong room, a circle and an unknown path are stopped"
