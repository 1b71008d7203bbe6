/* foveal_merge from plain C99, as c_abi_test.c does it for foveal_forward. */
#include <string.h>

#include "tests/contract/c_abi_fixture.h"

static foveal_tensor merge_outs[2], merge_lses[2];

/* out and lse from k and v's memory, as two parts of a result in the shapes of q and lse. */
static foveal_merge_args merging(void) {
    const int64_t shape_out[] = {kBatch, kRowsQ, kHeadsQ, kDim};
    const int64_t shape_lse[] = {kBatch, kHeadsQ, kRowsQ};
    foveal_merge_args args;
    foveal_merge_args_init(&args);
    args.backend = FOVEAL_BACKEND_CPU;
    args.parts = 2;
    merge_outs[0] = merge_outs[1] = tensor_of(q, FOVEAL_F32, 4, shape_out);
    merge_lses[0] = tensor_of(k, FOVEAL_F32, 3, shape_lse);
    merge_lses[1] = tensor_of(v, FOVEAL_F32, 3, shape_lse);
    args.outs = merge_outs;
    args.lses = merge_lses;
    args.out = tensor_of(out, FOVEAL_F32, 4, shape_out);
    args.lse = tensor_of(lse, FOVEAL_F32, 3, shape_lse);
    return args;
}

static void expect_no_merge(const char* what, const foveal_merge_args* args, void* stream, foveal_status status,
                            const char* words) {
    poison();
    expect_status(what, foveal_merge(args, stream), status);
    expect_message(what, words);
    check(untouched(), what, "something was written");
}

static void test_merge(void) {
    struct {
        foveal_merge_args args;
        int64_t unknown_option;
    } later;
    foveal_merge_args args = merging();
    poison();
    check(foveal_merge(&args, NULL) == FOVEAL_OK, "merge", foveal_last_error());
    check(!untouched(), "merge", "nothing was written");
    args.lse.rank = 0;
    check(foveal_merge(&args, NULL) == FOVEAL_OK, "merge without lse", foveal_last_error());
    args.backend = FOVEAL_BACKEND_AUTO;
    check(foveal_merge(&args, NULL) == FOVEAL_OK, "merge, backend auto", foveal_last_error());

    expect_no_merge("merge NULL", NULL, NULL, FOVEAL_INVALID_ARGUMENT, "args;NULL");
    args = merging(), args.outs = NULL;
    expect_no_merge("NULL outs", &args, NULL, FOVEAL_INVALID_ARGUMENT, "outs;NULL");
    args = merging(), args.lses = NULL;
    expect_no_merge("NULL lses", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lses;NULL");
    args = merging(), merge_outs[1].data = NULL;
    expect_no_merge("NULL outs[1]", &args, NULL, FOVEAL_INVALID_ARGUMENT, "outs[1].data;NULL");
    args = merging(), merge_lses[0].data = NULL;
    expect_no_merge("NULL lses[0]", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lses[0].data;NULL");
    args = merging(), args.out.data = NULL;
    expect_no_merge("merge to NULL", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out.data;NULL");
    args = merging(), args.lse.data = NULL;
    expect_no_merge("merge to NULL lse", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lse.data;NULL");
    args = merging(), merge_outs[0].data = (char*)q + 2;
    expect_no_merge("misaligned outs[0]", &args, NULL, FOVEAL_INVALID_ARGUMENT, "outs[0].data;align");
    args = merging(), merge_lses[1].data = (char*)v + 1;
    expect_no_merge("misaligned lses[1]", &args, NULL, FOVEAL_INVALID_ARGUMENT, "lses[1].data;align");
    args = merging(), args.out.data = (char*)out + 1;
    expect_no_merge("misaligned merged out", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out.data;align");
    args = merging(), args.out.data = (char*)q + sizeof(float);
    expect_no_merge("out over outs[0]", &args, NULL, FOVEAL_INVALID_ARGUMENT, "out;outs[0];in part");
    args = merging(), args.parts = 0;
    expect_no_merge("no parts", &args, NULL, FOVEAL_INVALID_ARGUMENT, "parts;0");
    args = merging();
    expect_no_merge("a stream on the CPU", &args, &args, FOVEAL_INVALID_ARGUMENT, "stream");
    args = merging(), args.struct_size = 16;
    expect_no_merge("struct_size 16", &args, NULL, FOVEAL_INVALID_ARGUMENT, "struct_size;16;foveal_merge_args_init");
    args = merging(), args.backend = FOVEAL_BACKEND_SM90;
    if (!foveal_backend_built(FOVEAL_BACKEND_SM90))
        expect_no_merge("sm90 in a build without it", &args, NULL, FOVEAL_NO_DEVICE, "sm90");

    memset(&later, 0, sizeof later);
    later.args = merging();
    later.args.struct_size = sizeof later;
    check(foveal_merge(&later.args, NULL) == FOVEAL_OK, "merge of a later version", foveal_last_error());
    later.unknown_option = 1;
    expect_no_merge("a later option", &later.args, NULL, FOVEAL_UNSUPPORTED, "struct_size");
    foveal_merge_args_init(NULL);
}

/* The initialisers write the caller's size and no more. */
static void test_init_of_any_size(void) {
    union {
        foveal_forward_args forward;
        foveal_merge_args merge;
        foveal_append_args append;
        unsigned char bytes[4096];
    } memory;
    size_t sizes[6], i, n;
    const size_t known[] = {sizeof memory.forward, sizeof memory.merge, sizeof memory.append};
    sizes[0] = 0, sizes[1] = 4, sizes[2] = known[0], sizes[3] = known[1], sizes[4] = known[2], sizes[5] = 2048;
    for (n = 0; n < 18; ++n) {
        const size_t size = sizes[n / 3];
        memset(&memory, kUntouched, sizeof memory);
        if (n % 3 == 0) foveal_forward_args_init_sized(&memory.forward, size);
        if (n % 3 == 1) foveal_merge_args_init_sized(&memory.merge, size);
        if (n % 3 == 2) foveal_append_args_init_sized(&memory.append, size);
        for (i = size; i < sizeof memory && memory.bytes[i] == kUntouched; ++i) continue;
        check(i == sizeof memory, "an initialiser", "writes behind the caller's structure");
        for (i = known[n % 3]; i < size && memory.bytes[i] == 0; ++i) continue;
        check(i >= size, "an initialiser", "leaves a later version's fields as they were");
        check(size < 4 || memory.merge.struct_size == size, "an initialiser", "does not set struct_size");
    }
    foveal_forward_args_init_sized(NULL, sizeof memory);
    foveal_merge_args_init_sized(NULL, sizeof memory);
    foveal_append_args_init_sized(NULL, sizeof memory);
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0); /* what was found before a crash shall be seen */
    test_merge();
    test_init_of_any_size();
    return report();
}
