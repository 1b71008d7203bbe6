// Far more live values than the register limit on the command line leaves room for.
__global__ void __launch_bounds__(1024, 2) keep_many(const float* in, float* out, int n) {
    float x[96];
#pragma unroll
    for (int i = 0; i < 96; ++i) x[i] = in[i * 1024 + threadIdx.x];
    for (int round = 0; round < n; ++round) {
#pragma unroll
        for (int i = 0; i < 96; ++i) x[i] = x[i] * x[(i * 7 + 1) % 96] + in[round];
    }
#pragma unroll
    for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = x[i];
}
