/* The C ABI from plain C99, with nothing but foveal.h: calls that must be refused, each with an error of its own that
 * names the argument and the value, none of which writes a byte. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/contract/c_abi_fixture.h"

static int32_t cu_q[kBatch + 1] = {0, kRowsQ, 2 * kRowsQ};
static int32_t cu_k[kBatch + 1] = {0, kRowsK, 2 * kRowsK};
static int32_t used_q[kBatch] = {kRowsQ, 1};
static int32_t used_k[kBatch] = {2, kRowsK};

static foveal_tensor vector_of(int32_t* data, int64_t entries) { return tensor_of(data, FOVEAL_I32, 1, &entries); }

static foveal_forward_args dense(void) {
    const int64_t shape_q[] = {kBatch, kRowsQ, kHeadsQ, kDim};
    const int64_t shape_k[] = {kBatch, kRowsK, kHeadsK, kDim};
    const int64_t shape_lse[] = {kBatch, kHeadsQ, kRowsQ};
    foveal_forward_args args;
    foveal_forward_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.q = tensor_of(q, FOVEAL_F32, 4, shape_q);
    args.k = tensor_of(k, FOVEAL_F32, 4, shape_k);
    args.v = tensor_of(v, FOVEAL_F32, 4, shape_k);
    args.out = tensor_of(out, FOVEAL_F32, 4, shape_q);
    args.lse = tensor_of(lse, FOVEAL_F32, 3, shape_lse);
    return args;
}

static foveal_forward_args varlen(void) {
    const int64_t shape_q[] = {kBatch * kRowsQ, kHeadsQ, kDim};
    const int64_t shape_k[] = {kBatch * kRowsK, kHeadsK, kDim};
    const int64_t shape_lse[] = {kHeadsQ, kBatch * kRowsQ};
    foveal_forward_args args = dense();
    args.q = tensor_of(q, FOVEAL_F32, 3, shape_q);
    args.k = tensor_of(k, FOVEAL_F32, 3, shape_k);
    args.v = tensor_of(v, FOVEAL_F32, 3, shape_k);
    args.out = tensor_of(out, FOVEAL_F32, 3, shape_q);
    args.lse = tensor_of(lse, FOVEAL_F32, 2, shape_lse);
    args.cu_seqlens_q = vector_of(cu_q, kBatch + 1);
    args.cu_seqlens_k = vector_of(cu_k, kBatch + 1);
    return args;
}

/* foveal_forward must refuse with `status` and these words. */
static void expect_refused(const char* what, const foveal_forward_args* args, void* stream, foveal_status status,
                           const char* words) {
    poison();
    expect_status(what, foveal_forward(args, stream), status);
    expect_message(what, words);
    check(untouched(), what, "something was written");
}

/* Wrong for any backend: foveal_supports must say the same. */
static void expect_invalid(const char* what, const foveal_forward_args* args, const char* words) {
    expect_refused(what, args, NULL, FOVEAL_INVALID_ARGUMENT, words);
    expect_status(what, foveal_supports(args), FOVEAL_INVALID_ARGUMENT);
}

static void expect_works(const char* what, const foveal_forward_args* args) {
    poison();
    check(foveal_forward(args, NULL) == FOVEAL_OK, what, foveal_last_error());
    check(foveal_supports(args) == FOVEAL_OK, what, foveal_last_error());
    check(!untouched(), what, "nothing was written");
}

static void test_good_calls(void) {
    foveal_forward_args args = dense();
    expect_works("dense", &args);
    args.lse.rank = 0;
    expect_works("without lse", &args);
    args = varlen();
    expect_works("varlen", &args);
    args.seqused_q = vector_of(used_q, kBatch);
    args.seqused_k = vector_of(used_k, kBatch);
    expect_works("varlen with seqused", &args);
    args = dense();
    args.k.shape[1] = args.v.shape[1] = 0;
    args.k.data = args.v.data = NULL;
    expect_works("no keys, and no memory for them", &args);
    args = dense();
    args.backend = FOVEAL_BACKEND_AUTO;
    expect_works("backend auto on host memory", &args);
}

static void test_pointers(void) {
    foveal_forward_args args;
    expect_refused("NULL args", NULL, NULL, FOVEAL_INVALID_ARGUMENT, "args;NULL");
    args = dense(), args.q.data = NULL;
    expect_refused("NULL q", &args, NULL, FOVEAL_INVALID_ARGUMENT, "q.data;NULL");
    args = dense(), args.k.data = NULL;
    expect_refused("NULL k", &args, NULL, FOVEAL_INVALID_ARGUMENT, "k.data;NULL");
    args = dense(), args.v.data = NULL;
    expect_refused("NULL v", &args, NULL, FOVEAL_INVALID_ARGUMENT, "v.data;NULL");
    args = dense(), args.out.data = NULL;
    expect_refused("NULL out", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out.data;NULL");
    args = dense(), args.lse.data = NULL;
    expect_refused("NULL lse", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lse.data;NULL");
    args = varlen(), args.cu_seqlens_q.data = NULL;
    expect_refused("NULL cu_seqlens_q", &args, NULL, FOVEAL_INVALID_ARGUMENT, "cu_seqlens_q.data;NULL");
    args = varlen(), args.cu_seqlens_k.data = NULL;
    expect_refused("NULL cu_seqlens_k", &args, NULL, FOVEAL_INVALID_ARGUMENT, "cu_seqlens_k.data;NULL");
    args = dense(), args.seqused_k = vector_of(NULL, kBatch);
    expect_refused("NULL seqused_k", &args, NULL, FOVEAL_INVALID_ARGUMENT, "seqused_k.data;NULL");

    args = dense(), args.q.data = (char*)q + 1;
    expect_refused("misaligned q", &args, NULL, FOVEAL_INVALID_ARGUMENT, "q.data;align");
    args = dense(), args.out.data = (char*)out + 2;
    expect_refused("misaligned out", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out.data;align");
    args = dense(), args.lse.data = (char*)lse + 3;
    expect_refused("misaligned lse", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lse.data;align");
    args = varlen(), args.cu_seqlens_k.data = (char*)cu_k + 1;
    expect_refused("misaligned cu_seqlens_k", &args, NULL, FOVEAL_INVALID_ARGUMENT, "cu_seqlens_k.data;align");
    args = dense();
    expect_refused("a stream on the CPU", &args, &args, FOVEAL_INVALID_ARGUMENT, "stream");
}

static void test_shapes(void) {
    foveal_forward_args args;
    args = dense(), args.q.rank = 3;
    expect_invalid("rank 3 q", &args, "q.rank;3;4");
    args = dense(), args.k.rank = 0;
    expect_invalid("absent k", &args, "k.rank;0");
    args = dense(), args.out.rank = 2;
    expect_invalid("rank 2 out", &args, "out.rank;2");
    args = dense(), args.v.rank = -1;
    expect_invalid("rank -1 v", &args, "v.rank;-1");
    args = dense(), args.v.rank = 5;
    expect_invalid("rank 5 v", &args, "v.rank;5");
    args = dense(), args.lse.rank = 2;
    expect_invalid("rank 2 lse", &args, "lse.rank;2;3");
    args = varlen(), args.q.rank = 4;
    expect_invalid("rank 4 q, varlen", &args, "q.rank;4;3");
    args = dense(), args.q.shape[1] = -3;
    expect_invalid("negative length", &args, "q.shape[1];-3");
    args = dense(), args.k.shape[0] = INT64_MIN;
    expect_invalid("most negative length", &args, "k.shape[0];-9223372036854775808");
    args = dense(), args.k.shape[3] = 7;
    expect_invalid("d of k differs", &args, "k.shape[3];7;8");
    args = dense(), args.v.shape[1] = 4;
    expect_invalid("rows of v differ", &args, "v.shape[1];4;5");
    args = dense(), args.out.shape[1] = 2;
    expect_invalid("rows of out differ", &args, "out.shape[1];2;3");
    args = dense(), args.out.shape[0] = 1;
    expect_invalid("batch of out differs", &args, "out.shape[0];1;2");
    args = dense(), args.lse.shape[2] = 2;
    expect_invalid("rows of lse differ", &args, "lse.shape[2];2;3");
    args = dense(), args.q.shape[2] = args.out.shape[2] = args.lse.shape[1] = 5,
    args.q.stride[1] = args.out.stride[1] = 40, args.q.stride[0] = args.out.stride[0] = 120, args.lse.stride[0] = 15;
    expect_invalid("head ratio 5/2", &args, "5;2;head");
    args = dense(), args.k.shape[2] = args.v.shape[2] = 0;
    expect_invalid("no key heads", &args, "k;0;head");
    args = dense(), args.q.shape[3] = args.k.shape[3] = 0;
    expect_invalid("d = 0", &args, "q;0;dimension");
}

static void test_strides(void) {
    foveal_forward_args args;
    args = dense(), args.k.stride[1] = -1;
    expect_invalid("a negative stride", &args, "k.stride[1];-1");
    args = dense(), args.out.stride[1] = 0;
    expect_invalid("stride 0 of what is written", &args, "out.stride[1];0");
    args = dense(), args.k.stride[3] = 0;
    expect_invalid("stride 0 between channels", &args, "k.stride[3];0");
    args = dense(), args.q.stride[0] = -96;
    expect_invalid("negative stride", &args, "q.stride[0];-96");
    args = dense(), args.v.stride[3] = 2;
    expect_invalid("last stride 2", &args, "v.stride[3];2;1");
    args = dense(), args.out.stride[1] = 8;
    expect_invalid("out on itself", &args, "out;stride;overlap");
    args = dense(), args.lse.stride[0] = 3;
    expect_invalid("lse on itself", &args, "lse;stride;overlap");
    args = dense();
    args.q.shape[0] = args.k.shape[0] = args.v.shape[0] = args.out.shape[0] = args.lse.shape[0] = INT64_C(1) << 62;
    expect_invalid("sizes beyond 64 bits", &args, "overflow;4611686018427387904");
    args = dense(), args.k.stride[0] = INT64_MAX;
    expect_invalid("strides beyond 64 bits", &args, "k;9223372036854775807");
    // Of two sequences: the byte behind the last one is the 2^63rd.
    args = dense(), args.k.stride[0] = (INT64_C(1) << 61) - kRowsK * kHeadsK * kDim;
    expect_invalid("an end beyond 64 bits", &args, "k;beyond 64 bits");
    --args.k.stride[0];
    check(foveal_supports(&args) == FOVEAL_OK, "the last end within 64 bits", foveal_last_error());
    args = dense(), args.q.shape[1] = args.out.shape[1] = args.lse.shape[2] = INT64_C(1) << 40;
    args.out.stride[0] = args.q.stride[0] = INT64_C(1) << 50, args.lse.stride[1] = INT64_C(1) << 41,
    args.lse.stride[0] = INT64_C(1) << 44;
    expect_invalid("a sequence too long to index", &args, "q.shape[1];1099511627776");
}

static void test_dtypes(void) {
    foveal_forward_args args;
    args = dense(), args.q.dtype = FOVEAL_I32;
    expect_invalid("i32 q", &args, "q.dtype;i32");
    args = dense(), args.q.dtype = 99;
    expect_invalid("dtype 99", &args, "q.dtype;99");
    args = dense(), args.k.dtype = FOVEAL_BF16;
    expect_invalid("mixed q and k", &args, "k.dtype;bf16;f32");
    args = dense(), args.out.dtype = FOVEAL_F16;
    expect_invalid("mixed q and out", &args, "out.dtype;f16;f32");
    args = dense(), args.lse.dtype = FOVEAL_BF16;
    expect_invalid("bf16 lse", &args, "lse.dtype;bf16;f32");
    args = varlen(), args.cu_seqlens_q.dtype = FOVEAL_F32;
    expect_invalid("f32 cu_seqlens_q", &args, "cu_seqlens_q.dtype;f32;i32");
    args = dense(), args.seqused_q = vector_of(used_q, kBatch), args.seqused_q.dtype = FOVEAL_BF16;
    expect_invalid("bf16 seqused_q", &args, "seqused_q.dtype;bf16;i32");
}

static void test_lengths(void) {
    foveal_forward_args args;
    args = varlen(), args.cu_seqlens_q.shape[0] = kBatch + 2;
    expect_invalid("cu_seqlens of different lengths", &args, "cu_seqlens;4;3");
    args = varlen(), args.cu_seqlens_k.rank = 2;
    expect_invalid("rank 2 cu_seqlens_k", &args, "cu_seqlens_k.rank;2");
    args = varlen(), args.cu_seqlens_q.shape[0] = args.cu_seqlens_k.shape[0] = 0;
    expect_invalid("empty cu_seqlens", &args, "cu_seqlens_q.shape[0];0");
    args = varlen(), args.cu_seqlens_q.shape[0] = args.cu_seqlens_k.shape[0] = INT64_MIN;
    expect_invalid("the most negative number of cu_seqlens", &args, "cu_seqlens_q.shape[0];-9223372036854775808");
    args = varlen(), args.cu_seqlens_k.rank = 0;
    expect_invalid("cu_seqlens_q alone", &args, "cu_seqlens_k;absent");
    args = varlen(), args.cu_seqlens_q.rank = 0;
    expect_invalid("cu_seqlens_k alone", &args, "cu_seqlens_q;absent");
    args = dense(), args.seqused_k = vector_of(used_k, kBatch + 1);
    expect_invalid("seqused_k of three", &args, "seqused_k.shape[0];3;2");
    args = varlen(), args.cu_seqlens_q.stride[0] = 2;
    expect_invalid("strided cu_seqlens_q", &args, "cu_seqlens_q.stride[0];2");
}

static void test_options(void) {
    foveal_forward_args args;
    args = dense(), args.struct_size = 0;
    expect_invalid("struct_size 0", &args, "struct_size;0");
    args = dense(), args.struct_size = 16;
    expect_invalid("struct_size too small", &args, "struct_size;16");
    args = dense(), args.struct_size = UINT32_MAX;
    expect_invalid("struct_size of no version", &args, "struct_size;4294967295");
    args = dense(), args.backend = 7;
    expect_invalid("backend 7", &args, "backend;7");
    args = dense(), args.alignment = 9;
    expect_invalid("alignment 9", &args, "alignment;9");
    args = dense(), args.window_left = -2;
    expect_invalid("window_left -2", &args, "window_left;-2");
    args = dense(), args.window_right = -7;
    expect_invalid("window_right -7", &args, "window_right;-7");
    args = dense(), args.scale = INFINITY;
    expect_invalid("infinite scale", &args, "scale;inf");
    args = dense(), args.scale = -INFINITY;
    expect_invalid("infinite negative scale", &args, "scale;inf");
}

/* A caller compiled against a later header: fields that this version does not know must be at their default, 0. */
static void test_later_version(void) {
    struct {
        foveal_forward_args args;
        int64_t unknown_option;
    } later;
    memset(&later, 0, sizeof later);
    later.args = dense();
    later.args.struct_size = sizeof later;
    expect_works("a later version's defaults", &later.args);
    later.unknown_option = 3;
    expect_refused("a later version's option", &later.args, NULL, FOVEAL_UNSUPPORTED, "struct_size");
    expect_status("a later version's option", foveal_supports(&later.args), FOVEAL_UNSUPPORTED);
}

/* d = 7 is a shape like any other to the CPU; the Hopper kernel refuses it by name, on any machine and in any build. */
static void test_odd_head_dim(void) {
    foveal_forward_args args = dense();
    args.q.shape[3] = args.k.shape[3] = args.v.shape[3] = args.out.shape[3] = 7;
    expect_works("d = 7", &args);
    args.backend = FOVEAL_BACKEND_SM90;
    args.q.dtype = args.k.dtype = args.v.dtype = args.out.dtype = FOVEAL_BF16;
    expect_status("d = 7 on sm90", foveal_supports(&args), FOVEAL_UNSUPPORTED);
    check(strstr(foveal_last_error(), "dimension is 7") != NULL, "d = 7 on sm90 is named", foveal_last_error());
    if (foveal_backend_built(FOVEAL_BACKEND_SM90))
        expect_refused("d = 7 on sm90", &args, NULL, FOVEAL_UNSUPPORTED, "dimension is 7");
    else
        expect_refused("sm90 in a build without it", &args, NULL, FOVEAL_NO_DEVICE, "sm90");
}

static void test_plans(void) {
    foveal_plan* plan = NULL;
    foveal_forward_args args = dense();
    char text[4096];
    char shorter[8];
    size_t needed = 0;
    expect_status("plan of NULL", foveal_plan_create(NULL, -1, &plan), FOVEAL_INVALID_ARGUMENT);
    expect_status("plan to NULL", foveal_plan_create(&args, -1, NULL), FOVEAL_INVALID_ARGUMENT);
    args.backend = FOVEAL_BACKEND_AUTO;
    expect_status("plan for auto", foveal_plan_create(&args, -1, &plan), FOVEAL_INVALID_ARGUMENT);
    check(strstr(foveal_last_error(), "backend") != NULL, "plan for auto names the backend", foveal_last_error());
    args = dense();
    args.q.shape[1] = -1;
    expect_status("plan of a negative length", foveal_plan_create(&args, -1, &plan), FOVEAL_INVALID_ARGUMENT);
    check(plan == NULL, "a refused plan", "is not NULL");

    args = dense();
    expect_status("plan", foveal_plan_create(&args, -1, &plan), FOVEAL_OK);
    check(plan != NULL, "a plan", "is NULL");
    expect_status("describe", foveal_plan_describe(plan, text, sizeof text, &needed), FOVEAL_OK);
    check(needed == strlen(text) + 1 && needed > 10, "describe says what it needs", text);
    check(strstr(text, "cpu") != NULL, "the description names its backend", text);
    expect_status("describe, size only", foveal_plan_describe(plan, NULL, 0, &needed), FOVEAL_OK);
    expect_status("describe, cut", foveal_plan_describe(plan, shorter, sizeof shorter, NULL), FOVEAL_OK);
    check(strlen(shorter) == sizeof shorter - 1 && strncmp(shorter, text, sizeof shorter - 1) == 0, "a cut description",
          "is not the beginning");
    expect_status("describe to NULL", foveal_plan_describe(plan, NULL, 5, NULL), FOVEAL_INVALID_ARGUMENT);
    expect_status("describe nothing", foveal_plan_describe(NULL, text, sizeof text, NULL), FOVEAL_INVALID_ARGUMENT);
    check(foveal_plan_workspace_bytes(plan) == 0, "workspace", "not 0");

    poison();
    expect_status("launch", foveal_plan_launch(plan, &args, NULL), FOVEAL_OK);
    check(!untouched(), "launch", "nothing was written");
    poison();
    expect_status("launch nothing", foveal_plan_launch(NULL, &args, NULL), FOVEAL_INVALID_ARGUMENT);
    expect_status("launch NULL", foveal_plan_launch(plan, NULL, NULL), FOVEAL_INVALID_ARGUMENT);
    args.q.shape[1] = args.out.shape[1] = args.lse.shape[2] = 2;
    expect_status("launch of another shape", foveal_plan_launch(plan, &args, NULL), FOVEAL_INVALID_ARGUMENT);
    check(strstr(foveal_last_error(), "plan") != NULL, "launch of another shape says so", foveal_last_error());
    args = dense(), args.window_right = 0;
    expect_status("launch of another mask", foveal_plan_launch(plan, &args, NULL), FOVEAL_INVALID_ARGUMENT);
    args = dense(), args.backend = FOVEAL_BACKEND_SM90;
    expect_status("launch for another backend", foveal_plan_launch(plan, &args, NULL), FOVEAL_INVALID_ARGUMENT);
    check(strstr(foveal_last_error(), "backend") != NULL, "launch for another backend says so", foveal_last_error());
    args = dense(), args.out.data = NULL;
    expect_status("launch to NULL", foveal_plan_launch(plan, &args, NULL), FOVEAL_INVALID_ARGUMENT);
    check(untouched(), "refused launches", "something was written");
    foveal_plan_destroy(plan);
    foveal_plan_destroy(NULL);
}

/* The statuses that foveal.h names beside a function, and no others; what cannot be made leaves the plan as it is. */
static void test_statuses(void) {
    foveal_plan* plan = NULL;
    foveal_forward_args args = dense();
    args.backend = FOVEAL_BACKEND_SM90;
    expect_status("f32 on sm90", foveal_supports(&args), FOVEAL_UNSUPPORTED);
    expect_status("a plan for f32 on sm90", foveal_plan_create(&args, -1, &plan), FOVEAL_UNSUPPORTED);
    args.q.dtype = args.k.dtype = args.v.dtype = args.out.dtype = FOVEAL_BF16;
    expect_status("bf16 on sm90, on any machine", foveal_supports(&args), FOVEAL_OK);
    expect_status("a plan for device -2", foveal_plan_create(&args, -2, &plan), FOVEAL_INVALID_ARGUMENT);
    if (!foveal_backend_built(FOVEAL_BACKEND_SM90)) {
        expect_refused("sm90 in a build without it", &args, NULL, FOVEAL_NO_DEVICE, "sm90");
        expect_status("a plan for a device", foveal_plan_create(&args, 0, &plan), FOVEAL_NO_DEVICE);
    }
    check(plan == NULL, "a refused plan", "is not NULL");
    expect_status("a plan for a generic device", foveal_plan_create(&args, -1, &plan), FOVEAL_OK);
    foveal_plan_destroy(plan);
    check(foveal_plan_workspace_bytes(NULL) == 0, "workspace of no plan", "not 0");
}

/* What is written lies apart; apart_test.cpp has every pair. */
static void test_overlaps(void) {
    foveal_forward_args args;
    args = dense(), args.lse.data = out + 4;
    expect_refused("lse in out", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out overlaps lse");
    args = dense(), args.q.data = out;
    expect_refused("out is q", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out overlaps q");
    args = dense(), args.v.data = lse, args.v.stride[0] = 0, args.v.shape[0] = 1;
    expect_invalid("another problem comes first", &args, "v.shape[0]");
}

static void test_names(void) {
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", FOVEAL_VERSION_MAJOR, FOVEAL_VERSION_MINOR, FOVEAL_VERSION_PATCH);
    check(strcmp(foveal_version(), version) == 0, "version", foveal_version());
    check(strcmp(foveal_status_name(FOVEAL_OK), "FOVEAL_OK") == 0, "name", foveal_status_name(FOVEAL_OK));
    check(strcmp(foveal_status_name(FOVEAL_NO_DEVICE), "FOVEAL_NO_DEVICE") == 0, "name",
          foveal_status_name(FOVEAL_NO_DEVICE));
    check(foveal_status_name(12345) != NULL, "name of an unknown status", "NULL");
    check(foveal_backend_built(FOVEAL_BACKEND_CPU) == 1, "CPU built", "no");
    check(foveal_backend_built(99) == 0, "backend 99 built", "yes");
    foveal_forward_args_init(NULL);
    expect_status("supports NULL", foveal_supports(NULL), FOVEAL_INVALID_ARGUMENT);
}

static void test_threads(void) {
    const int32_t before = foveal_get_num_threads();
    check(before >= 1, "threads by default", "none");
    expect_status("3 threads", foveal_set_num_threads(3), FOVEAL_OK);
    check(foveal_get_num_threads() == 3, "3 threads", "not so many");
    expect_status("-1 threads", foveal_set_num_threads(-1), FOVEAL_INVALID_ARGUMENT);
    check(strstr(foveal_last_error(), "threads is -1") != NULL, "-1 threads", foveal_last_error());
    expect_status("4097 threads", foveal_set_num_threads(4097), FOVEAL_INVALID_ARGUMENT);
    check(foveal_get_num_threads() == 3, "still 3 threads", "not so many");
    expect_status("the default again", foveal_set_num_threads(0), FOVEAL_OK);
    foveal_set_thread_runner(NULL, NULL);
    check(foveal_get_num_threads() == before, "as before", "other threads");
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0); /* what was found before a crash shall be seen */
    check(strcmp(foveal_last_error(), "") == 0, "no error at first", foveal_last_error());
    test_good_calls();
    test_pointers();
    test_shapes();
    test_strides();
    test_dtypes();
    test_lengths();
    test_options();
    test_later_version();
    test_odd_head_dim();
    test_plans();
    test_statuses();
    test_overlaps();
    test_names();
    test_threads();
    test_good_calls(); /* after all those errors */
    return report();
}
