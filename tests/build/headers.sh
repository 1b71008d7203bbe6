#!/bin/sh
# headers.sh SOURCE_DIR: no compiler that is here warns of the public headers, however strict: C99 and C++20.
set -u
cd "$1" || exit 1
strict="-pedantic-errors -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Werror -fsyntax-only -Iinclude"
tried=
failed=
# takes COMPILER STANDARD LANGUAGE HEADER...
takes() {
    compiler=$1 standard=$2 language=$3
    shift 3
    command -v "$compiler" >/dev/null || return 0
    tried="$tried $compiler"
    for header in "$@"; do
        # shellcheck disable=SC2086  # the flags are meant to be split
        echo "#include <$header>" | "$compiler" "-std=$standard" $strict -x "$language" - || failed="$failed $compiler:$header"
    done
}
for version in "" -12 -13 -14 -15 -16 -17 -18 -19; do
    for compiler in gcc clang; do takes $compiler$version c99 c foveal/foveal.h foveal/foveal_parallel.h; done
    for compiler in g++ clang++; do
        takes $compiler$version c++20 c++ foveal/foveal.h foveal/foveal_parallel.h foveal/foveal.hpp foveal/types.hpp foveal/candle_v3.hpp
    done
done
[ -n "$tried" ] || { echo "FAILED: there is no compiler"; exit 1; }
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "no warning from:$tried"
