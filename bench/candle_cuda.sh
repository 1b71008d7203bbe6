#!/bin/bash
# candle_cuda.sh FOLDER: candle-foveal's test programs and its example `seed` with the feature `cuda`, for Hopper GPUs, as
# FOLDER/tests.tar.xz, on a machine without a GPU and without NVIDIA's libraries.
#
# Needs cargo, gcc, what .ci/cuda_toolchain finds or fetches (nvcc of CUDA 13), and libfoveal: installed under $PREFIX, or
# else built in build/release (`make install PREFIX=…` does both). Which backends it has does not matter for linking.
#
# candle's PTX is compiled by the real nvcc. The CUDA libraries that are linked have the names of NVIDIA's and of their
# functions, and nothing else; the real ones are found on the GPU's machine. candle-kernels' static library (mixtures of
# experts and quantised products, most of the time) is compiled with FULL=1 alone: otherwise each of its functions ends the
# program, and nothing of candle-foveal calls one. JOBS (2) and NICE (10) are for cargo. What is made lies in build/rust-cuda.
#
# On the GPU's machine, in a checkout with the tool and the test programs of a build with the sm90 backend in BIN and its
# libfoveal in LIB; LIBRARIES is the folder of libcudart.so.13, libcublas.so.13, libcurand.so.10 and libnvrtc.so.13 (of
# PyTorch's packages for CUDA 13: site-packages/nvidia/cu13/lib):
#   mkdir candle && tar -C candle -xJf FOLDER/tests.tar.xz
#   export LD_LIBRARY_PATH=LIB:LIBRARIES
#   python3 bench/gpu_tests.py BIN --commit COMMIT --rust candle/tests --write bench/results/h200
#   FOVEAL_TOOL=BIN/foveal python3 bench/candle.py candle/seed --commit COMMIT --write bench/results/h200
set -euo pipefail
out=$(realpath -m "${1:?usage: candle_cuda.sh FOLDER}")
cd "$(dirname "$0")/.."
work=$PWD/build/rust-cuda
home=$work/toolkit # what cargo takes for CUDA's
nvcc=$(realpath "$(.ci/cuda_toolchain nvcc)")
toolkit=$(dirname "$(dirname "$nvcc")")
mkdir -p "$home/bin" "$home/lib" "$out"

# --- libfoveal
prefix=$(realpath -m "${PREFIX:-$work/prefix}")
if [ -z "${PREFIX:-}" ]; then
    [ -d build/release ] || { echo "candle_cuda.sh: no libfoveal in build/release, and PREFIX names none" >&2; exit 1; }
    rm -rf "$prefix"
    cmake --install build/release --prefix "$prefix" >/dev/null
fi
pkgconfig=$(find "$prefix" -name foveal.pc -printf '%h' -quit)
[ -n "$pkgconfig" ] || { echo "candle_cuda.sh: no foveal.pc under $prefix" >&2; exit 1; }
export PKG_CONFIG_PATH=$pkgconfig
LD_LIBRARY_PATH=$(dirname "$pkgconfig")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
cd bindings/rust # whose .cargo/config.toml counts

# --- CUDA's libraries: every function that cudarc's bindings name, so that the linker keeps the libraries as needed
cargo metadata --locked --format-version 1 --manifest-path candle-foveal/Cargo.toml --features cuda >"$work/packages.json"
folder_of() { # folder_of PACKAGE: its sources, unpacked
    python3 -c 'import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(open(sys.argv[1]))["packages"] if p["name"] == sys.argv[2]))' \
        "$work/packages.json" "$1"
}
cudarc=$(folder_of cudarc)
kernels=$(folder_of candle-kernels)
library() { # library NAME SONAME MODULE
    grep -rhoE '^ +fn [a-zA-Z0-9_]+' "$cudarc/src/$3/sys/" | awk '{print $2}' | grep -E '^(cu|nvrtc)' | sort -u |
        sed 's/.*/void &(void) {}/' >"$home/$1.c"
    gcc -shared -fPIC -w -o "$home/lib/lib$1.so" "$home/$1.c" -Wl,-soname,"$2"
}
library cuda libcuda.so.1 driver
library nvrtc libnvrtc.so.13 nvrtc
library curand libcurand.so.10 curand
library cublas libcublas.so.13 cublas
library cublasLt libcublasLt.so.13 cublaslt
cudart=$(find -L "$toolkit" -maxdepth 2 -name 'libcudart.so.1[0-9]' -print -quit)
[ -n "$cudart" ] || { echo "candle_cuda.sh: no libcudart.so under $toolkit" >&2; exit 1; }
ln -sf "$cudart" "$home/lib/libcudart.so"

# --- nvcc: the real one for PTX; for the static library the real one, or none
grep -oE 'pub fn [a-zA-Z0-9_]+' "$kernels/src/ffi.rs" | awk '{print "void " $3 "(void) { __builtin_trap(); }"}' >"$home/moe.c"
gcc -c -fPIC -w -o "$home/moe.o" "$home/moe.c"
cat >"$home/bin/nvcc" <<NVCC
#!/bin/bash
if [ "${FULL:-0}" = 0 ]; then
    case " \$* " in
    *" --lib "*) while [ "\$1" != -o ]; do shift; done; rm -f "\$2"; exec ar cr "\$2" "$home/moe.o" ;;
    *" -c "*) while [ "\$1" != -o ]; do shift; done; : >"\$2"; exit 0 ;;
    esac
fi
exec "$nvcc" "\$@"
NVCC
chmod +x "$home/bin/nvcc"

# --- the programs
export CUDA_HOME=$home NVCC=$home/bin/nvcc CUDA_COMPUTE_CAP=90 CUDARC_CUDA_VERSION=13000
export CARGO_TARGET_DIR=$work/target CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never CARGO_BUILD_JOBS=${JOBS:-2}
export CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=false
# What neither tests nor bench spend time in is not optimised: it would take longer to compile than all the rest.
nice -n "${NICE:-10}" cargo --config 'profile.release.package.candle-transformers.opt-level=0' \
    test --locked --release -p candle-foveal --features cuda --no-run --message-format=json >"$work/messages.json"
staging=$work/programs
rm -rf "$staging"
mkdir -p "$staging/tests"
python3 - "$work/messages.json" "$staging" <<'PY'
import json, shutil, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and "candle-foveal" in message["package_id"]:
        kind, name = message["target"]["kind"][0], message["target"]["name"]
        if kind == "test" or (kind, name) == ("example", "seed"):
            shutil.copy(message["executable"], f"{sys.argv[2]}/tests/{name}" if kind == "test" else sys.argv[2])
PY
rm -f "$staging/tests/documents" # reads the sources
tar -C "$staging" -cf - . | xz -T2 -6 >"$out/tests.tar.xz"
ls -l "$staging/tests" "$staging/seed" "$out/tests.tar.xz"
