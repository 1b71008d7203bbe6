// In front of libfoveal (LD_PRELOAD): sm90's calls are answered by the CPU backend, after their tensors were looked for in
// the fake device's memory, the stream and the current device checked, and the workspace.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "foveal/foveal.h"
static const size_t kBytes[] = {[FOVEAL_F32] = 4, [FOVEAL_BF16] = 2, [FOVEAL_F16] = 2, [FOVEAL_I32] = 4, [FOVEAL_BOOL] = 1, [FOVEAL_I64] = 8, [FOVEAL_U32] = 4, [FOVEAL_E4M3] = 1};
static int device_of(const void* p, size_t n) {
    static int (*f)(uint64_t, size_t);
    if (!f) f = dlsym(RTLD_DEFAULT, "fake_cuda_device_of");
    return f((uint64_t)p, n);
}
static int current(void) {
    static int (*f)(void);
    if (!f) f = dlsym(RTLD_DEFAULT, "fake_cuda_current");
    return f();
}
static long calls;
#define BAD(...) (fprintf(stderr, "SHIM: " __VA_ARGS__), fprintf(stderr, "\n"), abort())
static void tensor(const char* name, const foveal_tensor* t) {
    if (t->rank == 0) return;
    size_t last = 0;
    for (int i = 0; i < t->rank; ++i) {
        if (t->shape[i] == 0) return;
        last += (size_t)(t->shape[i] - 1) * (size_t)t->stride[i];
    }
    int d = device_of(t->data, (last + 1) * kBytes[t->dtype]);
    if (d < 0) BAD("%s is not within device memory", name);
    if (d != current()) BAD("%s is of device %d, current is %d", name, d, current());
}
#define REAL(name) static __typeof__(name)* real; if (!real) real = dlsym(RTLD_NEXT, #name); ++calls
static void stream_is(void* s) { if (s == NULL) BAD("the null stream"); if (current() < 0) BAD("no current device"); }
#define T(a, x) tensor(#x, &(a)->x)
static void forward_tensors(const foveal_forward_args* a) {
    T(a, q); T(a, k); T(a, v); T(a, out); T(a, lse); T(a, cu_seqlens_q); T(a, cu_seqlens_k); T(a, seqused_q); T(a, seqused_k);
    T(a, alibi_slopes); T(a, sinks); T(a, bias); T(a, mask); T(a, block_table); T(a, query_offset); T(a, tree_mask);
    T(a, page_indptr); T(a, page_indices); T(a, q_descale); T(a, k_descale); T(a, v_descale);
    if (a->dropout_state && device_of(a->dropout_state, 16) != current()) BAD("dropout_state");
}
static foveal_status no_f32(const foveal_forward_args* a) { return a->q.dtype == FOVEAL_F32 ? FOVEAL_UNSUPPORTED : FOVEAL_OK; }
foveal_status foveal_forward(const foveal_forward_args* args, void* s) {
    REAL(foveal_forward);
    if (args->backend != FOVEAL_BACKEND_SM90) return real(args, s);
    stream_is(s);
    foveal_forward_args a = *args;
    forward_tensors(&a);
    if (a.dropout_p > 0 && !getenv("FAKE_DROPOUT")) return foveal_supports(args);
    int few = a.q.rank == 4 && a.q.shape[1] < 8;
    if (a.workspace) {
        if ((uintptr_t)a.workspace % 16 || few && a.workspace_bytes < 8192) {
            uint64_t b = a.workspace_bytes; a.workspace = (void*)1; a.workspace_bytes = b; a.backend = FOVEAL_BACKEND_CPU;
            return real(&a, NULL); // refused: alignment
        }
        if (few) {
            if (device_of(a.workspace, a.workspace_bytes) != current()) BAD("the workspace");
            for (int i = 0; i < 4096; ++i) if (((char*)a.workspace)[i]) BAD("control words of the workspace are not zeros");
            memset((char*)a.workspace + 4096, 0x11, a.workspace_bytes - 4096);
        }
        a.workspace = NULL, a.workspace_bytes = 0;
    }
    a.backend = FOVEAL_BACKEND_CPU;
    return real(&a, NULL);
}
enum { kWorkspace = 4096 };
static __thread int asked;
foveal_status foveal_plan_create(const foveal_forward_args* args, int32_t device, foveal_plan** plan) {
    REAL(foveal_plan_create);
    if (args->backend != FOVEAL_BACKEND_SM90) return real(args, device, plan);
    if (device != current()) BAD("plan for device %d, current is %d", device, current());
    foveal_forward_args f = *args;
    f.backend = FOVEAL_BACKEND_CPU;
    asked = f.q.rank == 4 && f.q.shape[1] < 8 ? 8192 : 0;
    return real(&f, device, plan);
}
foveal_status foveal_backward_plan_create(const foveal_backward_args* args, int32_t device, foveal_plan** plan) {
    REAL(foveal_backward_plan_create);
    foveal_forward_args f = *args->forward;
    if (f.backend != FOVEAL_BACKEND_SM90) return real(args, device, plan);
    if (device != current()) BAD("plan for device %d, current is %d", device, current());
    f.backend = FOVEAL_BACKEND_CPU;
    foveal_backward_args b = *args;
    b.forward = &f;
    asked = kWorkspace;
    return real(&b, device, plan);
}
size_t foveal_plan_workspace_bytes(const foveal_plan* plan) {
    REAL(foveal_plan_workspace_bytes);
    int a = asked; asked = 0; return a ? (size_t)a : real(plan);
}
foveal_status foveal_backward(const foveal_backward_args* args, void* s) {
    REAL(foveal_backward);
    foveal_forward_args f = *args->forward;
    if (f.backend != FOVEAL_BACKEND_SM90) return real(args, s);
    stream_is(s);
    forward_tensors(&f);
    foveal_backward_args b = *args;
    T(&b, dout); T(&b, dlse); T(&b, dq); T(&b, dk); T(&b, dv); T(&b, dsinks); T(&b, dbias); T(&b, dalibi_slopes);
    if (b.workspace_bytes != kWorkspace || device_of(b.workspace, kWorkspace) != current() || (uintptr_t)b.workspace % 16)
        BAD("the workspace");
    for (int i = 0; i < kWorkspace; ++i) if (((char*)b.workspace)[i]) BAD("the workspace is not zeros");
    memset(b.workspace, 0x11, kWorkspace);
    f.backend = FOVEAL_BACKEND_CPU;
    b.forward = &f, b.workspace = NULL, b.workspace_bytes = 0;
    return real(&b, NULL);
}
foveal_status foveal_merge(const foveal_merge_args* args, void* s) {
    REAL(foveal_merge);
    if (args->backend != FOVEAL_BACKEND_SM90) return real(args, s);
    stream_is(s);
    foveal_merge_args a = *args;
    T(&a, out); T(&a, lse);
    a.backend = FOVEAL_BACKEND_CPU;
    return real(&a, NULL);
}
foveal_status foveal_append(const foveal_append_args* args, void* s) {
    REAL(foveal_append);
    if (args->backend != FOVEAL_BACKEND_SM90) return real(args, s);
    stream_is(s);
    foveal_append_args a = *args;
    T(&a, k); T(&a, v); T(&a, k_cache); T(&a, v_cache); T(&a, slot_mapping); T(&a, cache_lengths); T(&a, cu_seqlens); T(&a, block_table);
    T(&a, cos); T(&a, sin); T(&a, positions); T(&a, q); T(&a, q_out); T(&a, k_scale); T(&a, v_scale);
    a.backend = FOVEAL_BACKEND_CPU;
    return real(&a, NULL);
}
__attribute__((destructor)) static void report(void) { if (getenv("FAKE_REPORT")) fprintf(stderr, "SHIM: %ld calls of libfoveal\n", calls); }
