#!/bin/sh
# nvcc 13.0 as PyPI has it cannot link a program: it looks for libraries in lib64, but the packages put them into lib.
#
# Versions:  CUDA 13.0 (PyPI nvidia-cuda-nvcc==13.0.88, nvidia-cuda-crt==13.0.88, nvidia-nvvm==13.0.88,
#            nvidia-cuda-runtime==13.0.96), and 13.5 (13.5.37 of the same four), which links; GCC 12.2. Seen on 2026-11-28.
# Input:     a program of one kernel and an empty main(), compiled with `nvcc kernel.cu`.
# Behaviour: the packages unpack into one tree, nvidia/cu13, whose bin/nvcc.profile has the linker search lib64, while
#            libcudart_static.a and libcudadevrt.a lie in nvidia/cu13/lib. Compiling works, linking ends with:
#
#              /usr/bin/ld: cannot find -lcudadevrt: No such file or directory
#              /usr/bin/ld: cannot find -lcudart_static: No such file or directory
#
#            With `ln -s lib lib64` in that tree it links. The profile of 13.5 names lib.
#
# Needs python3 with pip, a C++ compiler and PyPI. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
echo '__global__ void kernel() {} int main() {}' >"$scratch/kernel.cu"

changed() {
    cat "$scratch/log"
    echo "CHANGED: $*"
    exit 1
}
install() { # install COMPILER RUNTIME: the versions of the compiler's packages and of the runtime's; sets nvcc
    python3 -m pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --target "$scratch/$1" \
        "nvidia-cuda-nvcc==$1" "nvidia-cuda-crt==$1" "nvidia-nvvm==$1" "nvidia-cuda-runtime==$2" >"$scratch/log" 2>&1 ||
        changed "nvcc $1 cannot be installed"
    nvcc=$scratch/$1/nvidia/cu13/bin/nvcc
}
compile() { # compile OPTION...
    "$nvcc" "$scratch/kernel.cu" "$@" >"$scratch/log" 2>&1
}

install 13.0.88 13.0.96
compile -c -o "$scratch/kernel.o" || changed "nvcc 13.0.88 cannot compile"
compile -o "$scratch/program" && changed "nvcc 13.0.88 links"
grep -q "cannot find -lcudart_static" "$scratch/log" || changed "nvcc 13.0.88 fails to link in another way"
grep "cannot find" "$scratch/log"
ln -s lib "$scratch/13.0.88/nvidia/cu13/lib64"
compile -o "$scratch/program" || changed "nvcc 13.0.88 does not link with lib64 either"
install 13.5.37 13.5.37
compile -o "$scratch/program" || changed "nvcc 13.5.37 does not link"
echo "still so: nvcc 13.0.88 links only if lib64 is a link to lib; 13.5.37 links as it is"
