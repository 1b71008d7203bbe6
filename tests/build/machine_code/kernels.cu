// Two kernels to be compiled in several ways: NAME names the first, FACTOR is in its code, EXTRA adds a third.
template <int factor>
__global__ void NAME(float* data) {  // [threads]
    data[threadIdx.x] *= factor;
}
template __global__ void NAME<FACTOR>(float*);

__global__ void add_one(float* data) {  // [threads]
    data[threadIdx.x] += 1;
}

#ifdef EXTRA
__global__ void negate(float* data) {  // [threads]
    data[threadIdx.x] *= -1;
}
#endif
