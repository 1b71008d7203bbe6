#!/bin/sh
# CMake 3.25.1, Debian 12's, cannot use CUDA 13 through find_package(CUDAToolkit) in a project that requires CMake 3.25.
#
# Versions:  CMake 3.25.0 (PyPI cmake==3.25.0, which has no 3.25.1; Debian's 3.25.1 does the same), CUDA 13.0 (PyPI
#            nvidia-cuda-nvcc==13.0.88, nvidia-cuda-crt==13.0.88, nvidia-cuda-runtime==13.0.96 and
#            nvidia-nvptxcompiler==13.0.88), Ninja (PyPI ninja==1.13.0); GCC 12.2. Seen on 2026-11-28.
# Input:     a project of three lines: cmake_minimum_required(VERSION 3.25), project(), find_package(CUDAToolkit REQUIRED).
# Behaviour: its module FindCUDAToolkit marks the target CUDA::nvToolsExt as deprecated whether or not it exists, and
#            CUDA 13 has no such library any more. The toolkit is found, yet configuring ends with:
#
#              CMake Error at .../cmake-3.25/Modules/FindCUDAToolkit.cmake:1086 (set_property):
#                set_property could not find TARGET CUDA::nvToolsExt.  Perhaps it has not
#                yet been created.
#
#            The same project is configured if it requires CMake 3.24 only, and with CMake 3.25.2.
#
# Needs python3 with pip, a C compiler and PyPI. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

install() { # install FOLDER PACKAGE...
    folder=$scratch/$1
    shift
    python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder" "$@" \
        >"$scratch/pip.log" 2>&1 || { cat "$scratch/pip.log"; echo "cannot install $*"; exit 1; }
}
install cmake-3.25.0 cmake==3.25.0
install cmake-3.25.2 cmake==3.25.2
install ninja ninja==1.13.0
install cuda nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-nvptxcompiler==13.0.88
cuda=$scratch/cuda/nvidia/cu13
ln -s libcudart.so.13 "$cuda/lib/libcudart.so" # as a toolkit that was installed has it; the packages lack it

configure() { # configure CMAKE_VERSION REQUIRED_VERSION: leaves what CMake says in log
    rm -rf "$scratch/project" "$scratch/build"
    mkdir "$scratch/project"
    cat >"$scratch/project/CMakeLists.txt" <<END
cmake_minimum_required(VERSION $2)
project(finding LANGUAGES C)
find_package(CUDAToolkit REQUIRED)
END
    "$scratch/cmake-$1/cmake/data/bin/cmake" -S "$scratch/project" -B "$scratch/build" -G Ninja \
        "-DCMAKE_MAKE_PROGRAM=$scratch/ninja/bin/ninja" "-DCUDAToolkit_ROOT=$cuda" >"$scratch/log" 2>&1
}
changed() {
    cat "$scratch/log"
    echo "CHANGED: $*"
    exit 1
}

configure 3.25.0 3.25 && changed "CMake 3.25.0 configures a project that requires 3.25"
grep -q "set_property could not find TARGET CUDA::nvToolsExt" "$scratch/log" || changed "CMake 3.25.0 fails in another way"
grep -A2 'FindCUDAToolkit.cmake:.*(set_property)' "$scratch/log"
configure 3.25.0 3.24 || changed "CMake 3.25.0 fails for a project that requires 3.24"
configure 3.25.2 3.25 || changed "CMake 3.25.2 fails"
echo "still so: CMake 3.25.0 fails where the project requires 3.25; required 3.24 or CMake 3.25.2 works"
