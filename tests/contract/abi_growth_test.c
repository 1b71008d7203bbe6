/* A caller and a library of different versions, in both directions. Built twice: against this version's header with a
 * library whose structures are longer (later_library.cpp), and against that library's header with this version's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "foveal/foveal.h"

#ifdef FOVEAL_LATER_CALLER
enum { kCallerIsLater = 1 };
#else
enum { kCallerIsLater = 0 };
/* later_library.cpp: what the library takes the fields for that this caller's structures lack. */
int64_t foveal_later_forward_field(const foveal_forward_args* args);
int64_t foveal_later_backward_field(const foveal_backward_args* args);
int64_t foveal_later_merge_field(const foveal_merge_args* args);
int64_t foveal_later_append_field(const foveal_append_args* args);
int64_t foveal_later_copy_pages_field(const foveal_copy_pages_args* args);
int64_t foveal_later_gather_field(const foveal_gather_args* args);
#endif

static int failures = 0;

static void check(int ok, const char* what) {
    if (ok) return;
    ++failures;
    printf("FAILED: %s (last error: %s)\n", what, foveal_last_error());
}

/* `size` bytes that end where the next access, of a read as of a write, ends the process. */
static void* before_the_end_of_memory(size_t size) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page * page;
    char* const memory = mmap(NULL, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + pages, page, PROT_NONE) != 0) exit(EXIT_FAILURE);
    memset(memory, 7, pages);
    return memory + pages - size;
}

static float q[4] = {1, 0, 0, 1}, k[4] = {1, 0, 0, 1}, v[4] = {1, 2, 3, 4}, out[4], lse[2];

static foveal_tensor rows(float* data) {
    const foveal_tensor t = {data, FOVEAL_F32, 4, {1, 2, 1, 2}, {4, 2, 2, 1}};
    return t;
}

static void test_forward(void) {
    foveal_forward_args* const args = before_the_end_of_memory(sizeof *args);
    foveal_plan* plan = NULL;
    foveal_forward_args_init(args);
    check(args->struct_size == sizeof *args, "struct_size is the caller's");
    check(args->scale != args->scale && args->window_left == FOVEAL_UNLIMITED && args->mask.rank == 0, "defaults");
    args->q = rows(q), args->k = rows(k), args->v = rows(v), args->out = rows(out);
    args->window_right = 0;
    args->backend = FOVEAL_BACKEND_CPU;
    check(foveal_forward(args, NULL) == FOVEAL_OK, "forward");
    check(out[0] == 1 && out[1] == 2 && out[2] > 2.3 && out[2] < 2.4, "forward's result");
    check(foveal_supports(args) == FOVEAL_OK, "supports");
    check(foveal_plan_create(args, -1, &plan) == FOVEAL_OK, "plan");
    memset(out, 0, sizeof out);
    check(foveal_plan_launch(plan, args, NULL) == FOVEAL_OK, "launch");
    check(out[0] == 1 && out[1] == 2, "launch's result");
    foveal_plan_destroy(plan);
    args->chunk = -1;
    check(foveal_forward(args, NULL) == FOVEAL_INVALID_ARGUMENT, "a wrong option is still refused");
    args->chunk = 0;
#ifdef FOVEAL_LATER_CALLER
    check(args->later_option == 0, "the library zeroes what it does not know");
    args->later_option = 1;
    check(foveal_forward(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know");
    check(foveal_supports(args) == FOVEAL_UNSUPPORTED, "an option that the library does not know, supports");
#else
    check(foveal_later_forward_field(args) == 0, "the default of what the caller does not know");
#endif
    args->struct_size = 0;
    check(foveal_forward(args, NULL) == FOVEAL_INVALID_ARGUMENT, "no structure at all");
}

static void test_backward(void) {
    foveal_forward_args* const forward = before_the_end_of_memory(sizeof *forward);
    foveal_backward_args* const args = before_the_end_of_memory(sizeof *args);
    const foveal_tensor lse_of_rows = {lse, FOVEAL_F32, 3, {1, 1, 2, 0}, {2, 2, 1, 0}};
    float dout[4] = {1, 2, 3, 4}, dv[4] = {7, 7, 7, 7};
    foveal_plan* plan = NULL;
    foveal_forward_args_init(forward);
    forward->q = rows(q), forward->k = rows(k), forward->v = rows(v), forward->out = rows(out);
    forward->lse = lse_of_rows;
    forward->window_right = 0;
    forward->backend = FOVEAL_BACKEND_CPU;
    check(foveal_forward(forward, NULL) == FOVEAL_OK, "forward with a log-sum-exp");
    foveal_backward_args_init(args);
    check(args->struct_size == sizeof *args, "struct_size is the caller's, backward");
    check(args->forward == NULL && args->dout.rank == 0 && args->workspace_bytes == 0, "defaults, backward");
    args->forward = forward;
    args->dout = rows(dout), args->dv = rows(dv);
    check(foveal_backward(args, NULL) == FOVEAL_OK, "backward");
    check(dv[0] + dv[2] > 3.99F && dv[0] + dv[2] < 4.01F && dv[0] > 1 && dv[2] > 1, "backward's result");
    check(foveal_backward_supports(args) == FOVEAL_OK, "supports, backward");
    check(foveal_backward_plan_create(args, -1, &plan) == FOVEAL_OK, "plan, backward");
    memset(dv, 0, sizeof dv);
    check(foveal_backward_plan_launch(plan, args, NULL) == FOVEAL_OK && dv[0] > 1, "launch, backward");
    check(foveal_plan_launch(plan, forward, NULL) == FOVEAL_INVALID_ARGUMENT, "a plan of the other direction");
    foveal_plan_destroy(plan);
#ifdef FOVEAL_LATER_CALLER
    check(args->later_option == 0, "the library zeroes what it does not know, backward");
    args->later_option = 1;
    check(foveal_backward(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know, backward");
    args->later_option = 0;
    forward->later_option = 1;
    check(foveal_backward(args, NULL) == FOVEAL_UNSUPPORTED, "an option of the forward call that it does not know");
#else
    check(foveal_later_backward_field(args) == 0, "the default of what the caller does not know, backward");
#endif
}

static void test_merge(void) {
    foveal_merge_args* const args = before_the_end_of_memory(sizeof *args);
    foveal_tensor outs[2], lses[2];
    const foveal_tensor lse_of_part = {lse, FOVEAL_F32, 3, {1, 1, 2, 0}, {2, 2, 1, 0}};
    outs[0] = rows(q), outs[1] = rows(k);
    lses[0] = lses[1] = lse_of_part;
    lse[0] = lse[1] = 0;
    foveal_merge_args_init(args);
    check(args->struct_size == sizeof *args, "struct_size is the caller's, merge");
    check(args->outs == NULL && args->lse.rank == 0, "defaults, merge");
    args->backend = FOVEAL_BACKEND_CPU;
    args->parts = 2;
    args->outs = outs, args->lses = lses;
    args->out = rows(out);
    check(foveal_merge(args, NULL) == FOVEAL_OK, "merge");
    check(out[0] == 1 && out[1] == 0 && out[2] == 0 && out[3] == 1, "merge's result");
#ifdef FOVEAL_LATER_CALLER
    check(args->later_option == 0, "the library zeroes what it does not know, merge");
    args->later_option = 1;
    check(foveal_merge(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know, merge");
#else
    check(foveal_later_merge_field(args) == 0, "the default of what the caller does not know, merge");
#endif
}

static void test_append(void) {
    foveal_append_args* const args = before_the_end_of_memory(sizeof *args);
    int64_t slot[2] = {1, 0};
    const foveal_tensor slots = {slot, FOVEAL_I64, 2, {1, 2, 0, 0}, {2, 1, 0, 0}};
    foveal_append_args_init(args);
    check(args->struct_size == sizeof *args, "struct_size is the caller's, append");
    check(args->k.rank == 0 && args->v_scale.rank == 0, "defaults, append");
    args->backend = FOVEAL_BACKEND_CPU;
    args->k = rows(k), args->k_cache = rows(out);
    args->slot_mapping = slots;
    check(foveal_append(args, NULL) == FOVEAL_OK, "append");
    check(out[0] == 0 && out[1] == 1 && out[2] == 1 && out[3] == 0, "append's result");
#ifdef FOVEAL_LATER_CALLER
    check(args->later_option == 0, "the library zeroes what it does not know, append");
    args->later_option = 1;
    check(foveal_append(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know, append");
#else
    check(foveal_later_append_field(args) == 0, "the default of what the caller does not know, append");
#endif
}

static void test_copy_pages(void) {
    foveal_copy_pages_args* const args = before_the_end_of_memory(sizeof *args);
    float pages[4] = {1, 2, 3, 4};
    int32_t pair[2] = {0, 1};
    const foveal_tensor cache = {pages, FOVEAL_F32, 4, {2, 1, 1, 2}, {2, 2, 2, 1}};
    const foveal_tensor pairs = {pair, FOVEAL_I32, 2, {1, 2, 0, 0}, {2, 1, 0, 0}};
    foveal_copy_pages_args_init(args);
    check(args->struct_size == sizeof *args && args->pairs.rank == 0, "defaults, copy_pages");
    args->backend = FOVEAL_BACKEND_CPU;
    args->k_cache = cache, args->pairs = pairs;
    check(foveal_copy_pages(args, NULL) == FOVEAL_OK, "copy_pages");
    check(pages[2] == 1 && pages[3] == 2, "copy_pages' result");
#ifdef FOVEAL_LATER_CALLER
    args->later_option = 1;
    check(foveal_copy_pages(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know, copy_pages");
#else
    check(foveal_later_copy_pages_field(args) == 0, "the default of what the caller does not know, copy_pages");
#endif
}

static void test_gather(void) {
    foveal_gather_args* const args = before_the_end_of_memory(sizeof *args);
    float pages[4] = {1, 2, 3, 4}, row[2] = {0, 0};
    int32_t end[2] = {0, 1}, page = 1;
    const foveal_tensor cache = {pages, FOVEAL_F32, 4, {2, 1, 1, 2}, {2, 2, 2, 1}};
    const foveal_tensor to = {row, FOVEAL_F32, 3, {1, 1, 2, 0}, {2, 2, 1, 0}};
    const foveal_tensor ends = {end, FOVEAL_I32, 1, {2, 0, 0, 0}, {1, 0, 0, 0}};
    const foveal_tensor table = {&page, FOVEAL_I32, 2, {1, 1, 0, 0}, {1, 1, 0, 0}};
    foveal_gather_args_init(args);
    check(args->struct_size == sizeof *args && args->page_indices.rank == 0, "defaults, gather");
    args->backend = FOVEAL_BACKEND_CPU;
    args->k_cache = cache, args->k = to, args->cu_seqlens_k = ends, args->block_table = table;
    check(foveal_gather(args, NULL) == FOVEAL_OK, "gather");
    check(row[0] == 3 && row[1] == 4, "gather's result");
#ifdef FOVEAL_LATER_CALLER
    args->later_option = 1;
    check(foveal_gather(args, NULL) == FOVEAL_UNSUPPORTED, "an option that the library does not know, gather");
#else
    check(foveal_later_gather_field(args) == 0, "the default of what the caller does not know, gather");
#endif
}

int main(void) {
    test_forward();
    test_backward();
    test_merge();
    test_append();
    test_copy_pages();
    test_gather();
    printf("%s caller: %d failed\n", kCallerIsLater ? "later" : "older", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
