// A CUDA driver that is none: "device memory" is malloc'd and checked, streams run at once, and those of candle's kernels
// that candle-foveal's tests need are loops, by name. For candle-foveal's cuda_fwd plumbing alone.
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef uint64_t ptr;
typedef struct { ptr at; size_t bytes; int device; } Block;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Block blocks[100000];
static int n_blocks;
static long allocs, frees, live_bytes, launches;
static char ctxs[2];
static __thread void* current;
#define FAIL(...) (fprintf(stderr, "FAKE CUDA: " __VA_ARGS__), fprintf(stderr, "\n"), getenv("FAKE_ABORT") ? abort() : (void)0)
static int device_now(void) { return current == NULL ? -1 : (int)((char*)current - ctxs); }
// device that owns [p, p + bytes), or -1
int fake_cuda_device_of(ptr p, size_t bytes) {
    int found = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_blocks; ++i)
        if (p >= blocks[i].at && p + bytes <= blocks[i].at + blocks[i].bytes) found = blocks[i].device;
    pthread_mutex_unlock(&lock);
    return found;
}
int fake_cuda_current(void) { return device_now(); }
long fake_cuda_allocs(void) { return allocs; }
int cuDeviceGet(int* d, int n) { return n > 1 ? 101 : (*d = n, 0); }
int cuDeviceGetCount(int* n) { return *n = 2, 0; }
int cuDevicePrimaryCtxRetain(void** c, int d) { return *c = &ctxs[d], 0; }
int cuCtxGetCurrent(void** c) { return *c = current, 0; }
int cuCtxSetCurrent(void* c) { return current = c, 0; }
int cuDeviceGetAttribute(int* v, int a, int d) { return *v = 1, 0; }
int cuStreamCreate(void** s, unsigned f) { return *s = malloc(8), 0; }
int cuStreamDestroy_v2(void* s) { return free(s), 0; }
int cuEventCreate(void** e, unsigned f) { return *e = malloc(8), 0; }
int cuEventDestroy_v2(void* e) { return free(e), 0; }
int cuStreamIsCapturing(void* s, int* v) { return *v = 0, 0; }
int cuMemGetInfo_v2(size_t* f, size_t* t) { return *t = 1L << 37, *f = (1L << 37) - live_bytes, 0; }
int cuMemAllocAsync(ptr* p, size_t n, void* s) {
    if (device_now() < 0) return FAIL("alloc without a context"), 201;
    if (n == 0) return FAIL("alloc of nothing"), 1;
    void* m = NULL;
    if (posix_memalign(&m, 256, n)) return 2;
    memset(m, 0xff, n);
    pthread_mutex_lock(&lock);
    blocks[n_blocks++] = (Block){(ptr)m, n, device_now()};
    ++allocs, live_bytes += n;
    pthread_mutex_unlock(&lock);
    return *p = (ptr)m, 0;
}
int cuMemFreeAsync(ptr p, void* s) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < n_blocks && blocks[i].at != p) ++i;
    int ok = i < n_blocks;
    if (ok) {
        memset((void*)p, 0xee, blocks[i].bytes);
        ++frees, live_bytes -= blocks[i].bytes;
        blocks[i] = blocks[--n_blocks];
        free((void*)p);
    }
    pthread_mutex_unlock(&lock);
    return ok ? 0 : (FAIL("free of what was not given"), 1);
}
#define KNOWN(p, n) if ((n) && fake_cuda_device_of(p, n) < 0) return FAIL("%s outside memory: %lx %zu", __func__, (long)(p), (size_t)(n)), 700
int cuMemsetD8Async(ptr p, unsigned char v, size_t n, void* s) { KNOWN(p, n); return memset((void*)p, v, n), 0; }
int cuMemcpyHtoDAsync_v2(ptr p, const void* h, size_t n, void* s) { KNOWN(p, n); return memcpy((void*)p, h, n), 0; }
int cuMemcpyDtoHAsync_v2(void* h, ptr p, size_t n, void* s) { KNOWN(p, n); return memcpy(h, (void*)p, n), 0; }
int cuMemcpyDtoDAsync_v2(ptr a, ptr b, size_t n, void* s) { KNOWN(a, n); KNOWN(b, n); return memcpy((void*)a, (void*)b, n), 0; }
int cuModuleLoadData(void** m, const void* image) { return *m = malloc(8), 0; }
int cuModuleGetFunction(void** f, void* m, const char* name) { return *f = strdup(name), 0; }

static float of_bf16(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
static uint16_t to_bf16(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    if (f != f) return 0x7fc0;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
enum { F32, BF16, F16, U32, U8, I64, I32, F64 };
static const char* kTypes[] = {"f32", "bf16", "f16", "u32", "u8", "i64", "i32", "f64"};
static const int kSizes[] = {4, 2, 2, 4, 1, 8, 4, 8};
static int type_at_end(const char* name, size_t* prefix) {
    for (int t = 0; t < 8; ++t) {
        size_t n = strlen(name), m = strlen(kTypes[t]);
        if (n > m && name[n - m - 1] == '_' && !strcmp(name + n - m, kTypes[t])) return *prefix = n - m - 1, t;
    }
    return -1;
}
static double get(int t, const void* p, size_t i) {
    switch (t) {
    case F32: return ((float*)p)[i];
    case BF16: return of_bf16(((uint16_t*)p)[i]);
    case F16: return (double)((_Float16*)p)[i];
    case U32: return ((uint32_t*)p)[i];
    case U8: return ((uint8_t*)p)[i];
    case I64: return (double)((int64_t*)p)[i];
    case I32: return ((int32_t*)p)[i];
    default: return ((double*)p)[i];
    }
}
static void put(int t, void* p, size_t i, double x) {
    switch (t) {
    case F32: ((float*)p)[i] = (float)x; break;
    case BF16: ((uint16_t*)p)[i] = to_bf16((float)x); break;
    case F16: ((_Float16*)p)[i] = (_Float16)x; break;
    case U32: ((uint32_t*)p)[i] = (uint32_t)(int64_t)x; break;
    case U8: ((uint8_t*)p)[i] = (uint8_t)x; break;
    case I64: ((int64_t*)p)[i] = (int64_t)x; break;
    case I32: ((int32_t*)p)[i] = (int32_t)x; break;
    default: ((double*)p)[i] = x;
    }
}
static size_t strided(size_t i, size_t n, const size_t* dims, const size_t* strides) {
    if (!dims) return i;
    size_t at = 0;
    for (size_t d = n; d-- > 0; i /= dims[d]) at += i % dims[d] * strides[d];
    return at;
}
static double binary(const char* f, double a, double b) {
    return !strncmp(f, "badd", 4) ? a + b : !strncmp(f, "bsub", 4) ? a - b : !strncmp(f, "bmul", 4) ? a * b
         : !strncmp(f, "bdiv", 4) ? a / b : (FAIL("%s", f), NAN);
}
static double unary(const char* f, double x) {
    return !strncmp(f, "ucopy", 5) ? x : !strncmp(f, "usqr_", 5) ? x * x : !strncmp(f, "uabs", 4) ? fabs(x)
         : !strncmp(f, "ucos", 4) ? cosf(x) : !strncmp(f, "usin", 4) ? sinf(x) : !strncmp(f, "uexp", 4) ? expf(x)
         : !strncmp(f, "usqrt", 5) ? sqrt(x) : !strncmp(f, "utanh", 5) ? tanhf(x) : !strncmp(f, "uneg", 4) ? -x : (FAIL("%s", f), NAN);
}
int cuLaunchKernel(void* fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned sh,
                   void* stream, void** a, void** extra) {
    const char* f = fn;
    ++launches;
    if (gx == 0) return FAIL("%s: an empty grid", f), 1;
    if (device_now() < 0) return FAIL("%s without a context", f), 201;
    size_t at = 0;
    int t = type_at_end(f, &at);
#define SIZE(i) (*(size_t*)a[i])
#define PTR(i) (*(void**)a[i])
    size_t n = SIZE(0), nd = 0, *info = NULL;
    if (!strncmp(f, "cast_", 5)) {
        char from[32]; snprintf(from, sizeof from, "%.*s", (int)at, f);
        size_t ignored; int s = type_at_end(from, &ignored);
        nd = SIZE(1), info = PTR(2);
        for (size_t i = 0; i < n; ++i) put(t, PTR(4), i, get(s, PTR(3), strided(i, nd, info, info + nd)));
    } else if (!strncmp(f, "const_set", 9)) {
        nd = SIZE(1), info = PTR(2);
        for (size_t i = 0; i < n; ++i) put(t, PTR(4), strided(i, nd, info, info + nd), get(t, a[3], 0));
    } else if (!strncmp(f, "affine", 6)) {
        nd = SIZE(1), info = PTR(2);
        for (size_t i = 0; i < n; ++i) {
            double x = get(t, PTR(3) ? PTR(3) : PTR(4), strided(i, nd, info, info + nd));
            put(t, PTR(4), i, x * get(t, a[5], 0) + get(t, a[6], 0));
        }
    } else if (!strncmp(f, "softmax", 7)) {
        int cols = *(int*)a[2];
        for (size_t r = 0; r < gx; ++r) {
            double top = -INFINITY, sum = 0;
            for (int c = 0; c < cols; ++c) top = fmax(top, get(t, PTR(0), r * cols + c));
            for (int c = 0; c < cols; ++c) sum += exp(get(t, PTR(0), r * cols + c) - top);
            for (int c = 0; c < cols; ++c) put(t, PTR(1), r * cols + c, exp(get(t, PTR(0), r * cols + c) - top) / sum);
        }
    } else if (!strncmp(f, "rope_", 5)) {
        int inter = !strncmp(f, "rope_i_", 7);
        uint32_t bh = *(uint32_t*)a[4], td = *(uint32_t*)a[5], d = inter ? 0 : *(uint32_t*)a[6];
        for (uint32_t i = 0; i < bh * td / 2; ++i) {
            uint32_t row = i / (td / 2), in = i % (td / 2), x1, x2, cs;
            if (inter) x1 = 2 * i, x2 = 2 * i + 1, cs = in;
            else {
                uint32_t it = in / (d / 2), id = in % (d / 2);
                x1 = row * td + it * d + id, x2 = x1 + d / 2, cs = it * (d / 2) + id;
            }
            float c = get(t, PTR(1), cs), s = get(t, PTR(2), cs), x = get(t, PTR(0), x1), y = get(t, PTR(0), x2);
            put(t, PTR(3), x1, x * c - y * s), put(t, PTR(3), x2, x * s + y * c);
        }
    } else if (f[0] == 'b') {
        nd = SIZE(1), info = PTR(2);
        for (size_t i = 0; i < n; ++i)
            put(t, PTR(5), i, binary(f, get(t, PTR(3), strided(i, nd, info, info + nd)),
                                     get(t, PTR(4), strided(i, nd, info, info + 2 * nd))));
    } else if (f[0] == 'u') {
        nd = SIZE(1), info = PTR(2);
        for (size_t i = 0; i < n; ++i) put(t, PTR(4), i, unary(f, get(t, PTR(3), strided(i, nd, info, info + nd))));
    } else if (!strncmp(f, "fast_sum", 8) || !strncmp(f, "fast_max", 8)) {
        int small = strstr(f, "small") != NULL, max = f[5] == 'm';
        size_t each = SIZE(1), outs = small ? n : n / each;
        nd = SIZE(2), info = PTR(3);
        for (size_t o = 0; o < outs; ++o) {
            double sum = max ? -INFINITY : 0;
            for (size_t i = 0; i < each; ++i) {
                double x = get(t, PTR(4), strided(o * each + i, nd, info, info + nd));
                sum = max ? fmax(sum, x) : sum + x;
            }
            put(t, PTR(5), o, sum);
        }
    } else if (!strncmp(f, "copy2d", 6)) {
        uint32_t d1 = *(uint32_t*)a[2], d2 = *(uint32_t*)a[3], ss = *(uint32_t*)a[4], ds = *(uint32_t*)a[5];
        for (uint32_t i = 0; i < d1; ++i)
            memcpy((char*)PTR(1) + (size_t)i * ds * kSizes[t], (char*)PTR(0) + (size_t)i * ss * kSizes[t], (size_t)d2 * kSizes[t]);
    } else {
        return FAIL("no kernel %s", f), 98;
    }
    return 0;
}
