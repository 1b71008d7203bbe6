// The accumulator is read while its wgmma is still in flight: ptxas must serialise, and says so as C75xx.
__global__ void __launch_bounds__(128) read_too_early(unsigned long long a, unsigned long long b, float* out) {
    float x[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
                     : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])
                     : "l"(a), "l"(b));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        x[0] *= 2.0f;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = x[i];
}
