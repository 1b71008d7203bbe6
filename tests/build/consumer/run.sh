#!/bin/sh
# run.sh CMAKE BUILD_DIR EXAMPLES_DIR MAX_BYTES
# Installs the build, moves the installation elsewhere, then builds and runs the README's examples against it: through
# find_package, and in plain C99 through pkg-config as the README says it. The library, headers and tool must fit into
# MAX_BYTES. At last it installs once more and uninstalls: nothing may be left.
set -u
cmake=$1
build=$2
examples=$3
max_bytes=$4
sources=$(dirname "$0")
scratch=$(mktemp -d) || exit 1
# What a user installed from this build tree stays what `uninstall` removes.
manifest=$build/install_manifest.txt
[ -e "$manifest" ] && cp "$manifest" "$scratch/manifest"
trap 'rm -f "$manifest"; [ -e "$scratch/manifest" ] && cp "$scratch/manifest" "$manifest"; rm -rf "$scratch"' EXIT
prefix=$scratch/moved

step() { # step COMMAND...: quiet unless it fails
    "$@" >"$scratch/log" 2>&1 || {
        echo "FAILED: $*"
        cat "$scratch/log"
        exit 1
    }
}

expect() { # expect WANTED COMMAND...: the program's output
    wanted=$1
    shift
    printed=$("$@") || { echo "FAILED: $* exits with an error"; exit 1; }
    [ "$printed" = "$wanted" ] || { echo "FAILED: $* prints '$printed', not '$wanted'"; exit 1; }
}

step "$cmake" --install "$build" --prefix "$scratch/first" --strip
mv "$scratch/first" "$prefix"

bytes=$(find "$prefix" -type f -printf '%s\n' | awk '{sum += $1} END {print sum}')
echo "installed: $bytes bytes"
[ "$bytes" -le "$max_bytes" ] || { echo "FAILED: more than $max_bytes bytes"; exit 1; }

wanted="1 2  2.33952 3.33952"

for language in C CXX; do
    [ $language = C ] && source=$examples/forward.c || source=$examples/forward.cpp
    step "$cmake" -S "$sources" -B "$scratch/$language" "-DCMAKE_PREFIX_PATH=$prefix" -DCMAKE_BUILD_TYPE=Release \
        -DLANGUAGE=$language "-DSOURCE=$source"
    step "$cmake" --build "$scratch/$language"
    expect "$wanted" "$scratch/$language/consumer"
    echo "find_package(foveal): $language works"
done

PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name foveal.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046  # the flags are meant to be split
step "${CC:-cc}" -std=c99 -pedantic-errors -Wall -Wextra -Werror "$examples/forward.c" -o "$scratch/pkgconfig_c" \
    $(pkg-config --cflags --libs foveal)
expect "$wanted" "$scratch/pkgconfig_c"
echo "pkg-config foveal: C99 works"

[ -s "$prefix/share/doc/foveal/LICENSE" ] || { echo "FAILED: no licence is installed"; exit 1; }
if [ -x "$prefix/bin/foveal" ]; then
    step "$prefix/bin/foveal" --help
    echo "the installed tool starts"
fi

step "$cmake" --install "$build" --prefix "$scratch/again"
step "$cmake" --build "$build" --target uninstall
left=$(find "$scratch/again" -not -type d -o -name foveal)
[ -z "$left" ] || { echo "FAILED: uninstall leaves" $left; exit 1; }
echo "uninstall: nothing is left"
