#!/bin/sh
# static.sh CMAKE SOURCE_DIR
# A user's project that takes foveal's sources in with add_subdirectory() (FetchContent does the same) as a static
# library, and installs it; then users of that installation through find_package, in C and C++, and through
# `pkg-config --static`. CPU only, and unoptimised: the linking is what is tested.
set -u
cmake=$1
source_dir=$2
consumer=$(dirname "$0")
examples=$source_dir/examples
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix

step() { # step COMMAND...: quiet unless it fails
    "$@" >"$scratch/log" 2>&1 || {
        echo "FAILED: $*"
        cat "$scratch/log"
        exit 1
    }
}

expect() { # expect COMMAND...: prints what the README says
    printed=$("$@") || { echo "FAILED: $* exits with an error"; exit 1; }
    [ "$printed" = "1 2  2.33952 3.33952" ] || { echo "FAILED: $* prints '$printed'"; exit 1; }
}

step "$cmake" -S "$consumer" -B "$scratch/subdirectory" "-DFOVEAL_SOURCE_DIR=$source_dir" -DLANGUAGE=CXX \
    "-DSOURCE=$examples/forward.cpp" -DBUILD_SHARED_LIBS=OFF -DFOVEAL_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0
step "$cmake" --build "$scratch/subdirectory" --parallel 2
expect "$scratch/subdirectory/consumer"
echo "add_subdirectory(foveal), static: works"

step "$cmake" --install "$scratch/subdirectory" --prefix "$prefix"
find "$prefix" -name 'libfoveal.so*' | grep . && { echo "FAILED: BUILD_SHARED_LIBS=OFF makes a shared library"; exit 1; }

for language in C CXX; do
    [ $language = C ] && source=$examples/forward.c || source=$examples/forward.cpp
    step "$cmake" -S "$consumer" -B "$scratch/$language" "-DCMAKE_PREFIX_PATH=$prefix" -DCMAKE_BUILD_TYPE=Release \
        -DLANGUAGE=$language "-DSOURCE=$source"
    step "$cmake" --build "$scratch/$language"
    expect "$scratch/$language/consumer"
    echo "find_package(foveal), static: $language works"
done

PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name foveal.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046  # the flags are meant to be split
step "${CC:-cc}" -std=c99 "$examples/forward.c" -o "$scratch/pkgconfig_c" $(pkg-config --static --cflags --libs foveal)
expect "$scratch/pkgconfig_c"
echo "pkg-config --static foveal: C99 works"
