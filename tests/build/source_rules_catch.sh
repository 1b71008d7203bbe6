#!/bin/sh
# source_rules_catch.sh CHECK_SOURCES: every rule of .ci/check_sources stops an offence and lets a harmless line pass.
set -u
check=$1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/src/sm90/ptx" "$scratch/include" "$scratch/tests"
# The scratch tree must not count as part of a repository around it.
GIT_CEILING_DIRECTORIES=$(dirname "$scratch")
export GIT_CEILING_DIRECTORIES

must_pass() { # must_pass FILE LINE
    echo "$2" >"$scratch/$1"
    "$check" "$scratch" >"$scratch/log" || { echo "FAILED: $1 with '$2' is stopped"; cat "$scratch/log"; exit 1; }
    rm "$scratch/$1"
}
must_stop() { # must_stop FILE LINE
    echo "$2" >"$scratch/$1"
    "$check" "$scratch" >"$scratch/log" && { echo "FAILED: $1 with '$2' passes"; exit 1; }
    grep -q "^$1:1:" "$scratch/log" || { echo "FAILED: $1 is not named"; cat "$scratch/log"; exit 1; }
    rm "$scratch/$1"
}

must_pass src/sm90/ptx/wgmma.cuh '    asm volatile("wgmma.fence.sync.aligned;");'
must_stop src/sm90/softmax.cuh '    asm volatile("ex2.approx.ftz.f32 %0, %1;");'
must_stop tests/device.cu '    asm("trap;");'
must_pass tests/device.cu '    printf("tests may print"); exit(1);'

must_pass src/plan.cpp '    std::snprintf(text, size, "%d", x);  // never printf() or exit(1)'
must_stop src/plan.cpp '    printf("%d", x);'
must_stop src/plan.cpp '    std::fprintf(stderr, "oops");'
must_stop src/plan.cpp '    std::cerr << x;'
must_stop src/plan.cpp '    exit(1);'
must_stop include/foveal.hpp '    std::abort();'
must_stop src/plan.cpp '    assert(x > 0);'
must_pass src/plan.cpp '    static_assert(x > 0);'
must_stop src/sm90/launch.cpp '    cudaMallocAsync(&p, 1, stream);'
must_stop src/sm90/launch.cpp '    cudaFree(p);'
must_stop src/sm90/launch.cpp '    cudaDeviceSynchronize();'
must_stop src/sm90/launch.cpp '    cudaStreamSynchronize(stream);'
must_stop src/sm90/launch.cpp '    cudaMemcpyAsync(a, b, 1, kind, stream);'
must_stop src/sm90/launch.cpp '    kernel<<<1, 1>>>(p);'
must_stop src/sm90/launch.cpp '    config.stream = cudaStreamLegacy;'
must_pass src/sm90/launch.cpp '    cudaLaunchKernelExC(&config, kernel, arguments);'
echo "every rule stops what it must"
