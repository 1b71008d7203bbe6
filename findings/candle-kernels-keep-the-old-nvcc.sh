#!/bin/sh
# candle's kernels stay those of the nvcc of the first build: an nvcc of another version is asked for its version, and compiles
# nothing.
#
# Versions:  candle-kernels 0.11.1 with cudaforge 0.1.6, cargo 1.95.0. Seen on 2026-11-30.
# Input:     a crate that depends on candle-kernels, as candle-core's feature `cuda` does. `cargo build` with an nvcc that says it is
#            release 13.0, then with one of release 12.9: named by NVCC, by CUDA_HOME, and found first on PATH; then with another
#            CUDA_COMPUTE_CAP. The two nvccs are scripts that write down what they are called for and make the files that are
#            asked for, empty: what they compile does not matter here, and the real one takes minutes.
# Behaviour: another NVCC or CUDA_HOME reruns the build script, which calls the new nvcc with --version and then takes all of the
#            old one's PTX and its libmoe.a: cudaforge remembers sources and arguments, not the compiler. Another nvcc on PATH is
#            not even called. `cargo build` ends well each time. So going back to an older toolkit because the driver cannot take
#            the newer one's PTX, or forward for a fix in the compiler, changes nothing and says nothing. Another compute
#            capability compiles everything with the new one; so does `cargo clean -p candle-kernels`.
#
# Needs cargo and the network. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export CARGO_TARGET_DIR="$scratch/target" CUDA_COMPUTE_CAP=90
mkdir -p "$scratch/user/src" && cd "$scratch/user" || exit 1
printf '[package]\nname = "user"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\ncandle-kernels = "=0.11.1"\n' >Cargo.toml
printf '[build-dependencies]\ncudaforge = "=0.1.6"\n' >>Cargo.toml
: >src/lib.rs
for name in first second; do
    mkdir -p "$scratch/$name/bin" "$scratch/$name/include" "$scratch/$name/lib64"
    : >"$scratch/$name/include/cuda.h"
    [ $name = first ] && release=13.0 || release=12.9
    cat >"$scratch/$name/bin/nvcc" <<NVCC
#!/bin/sh
output='' folder='' source='' purpose=links
while [ \$# -gt 0 ]; do
    case \$1 in
    --version) echo 'Cuda compilation tools, release $release, V$release.88' && purpose=version ;;
    -o) output=\$2 ;;
    --output-directory) folder=\$2 ;;
    *.cu) source=\$1 purpose=compiles ;;
    esac
    shift
done
[ \$purpose = links ] || echo $name \$purpose >>"$scratch/called"
[ -z "\$folder" ] || output=\$folder/\$(basename "\$source" .cu).ptx
[ -z "\$output" ] || : >"\$output"
NVCC
    chmod +x "$scratch/$name/bin/nvcc"
done
asked() { # asked VARIABLE=VALUE...: builds with it; who compiled, who only said its version?
    : >"$scratch/called"
    env "$@" cargo build >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; echo failed; return; }
    if grep -q compiles "$scratch/called"; then sort -u "$scratch/called" | sed -n 's/ compiles//p'; else
        [ -s "$scratch/called" ] && echo "$(sort -u "$scratch/called")" || echo nobody
    fi
}
first=$(asked NVCC="$scratch/first/bin/nvcc" CUDA_HOME="$scratch/first")
by_nvcc=$(asked NVCC="$scratch/second/bin/nvcc" CUDA_HOME="$scratch/first")
by_home=$(asked CUDA_HOME="$scratch/second")
by_path=$(asked PATH="$scratch/second/bin:$PATH")
by_capability=$(asked NVCC="$scratch/second/bin/nvcc" CUDA_HOME="$scratch/second" CUDA_COMPUTE_CAP=89)
seen="first / second version / second version / nobody / second"
now="$first / $by_nvcc / $by_home / $by_path / $by_capability"
echo "at first, by NVCC, by CUDA_HOME, by PATH, with another capability: $now"
# Seen: at first, by NVCC, by CUDA_HOME, by PATH, with another capability: first / second version / second version / nobody / second
[ "$now" = "$seen" ] || { echo "this has changed"; exit 1; }
